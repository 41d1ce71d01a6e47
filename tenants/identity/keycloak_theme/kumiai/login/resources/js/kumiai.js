// What Keycloak's page shows but does not tell: the field of the name has no label, and an error is not announced.
document.addEventListener("DOMContentLoaded", () => {
  const name = document.getElementById("kc-attempted-username");
  const label = document.querySelector('label[for="username"]');
  if (name && label) {
    name.setAttribute("aria-label", label.textContent.trim());
  }
  for (const kind of ["username", "password", "password-new", "password-confirm"]) {
    const error = document.getElementById(`input-error-${kind}`);
    const field = document.getElementById(kind);
    if (error && field) {
      error.setAttribute("role", "alert");
      field.setAttribute("aria-describedby", error.id);
    }
  }
});
