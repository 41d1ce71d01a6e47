// What Keycloak's page shows but does not tell: some fields have no label, or one that names no field, and an error is
// not announced.
document.addEventListener("DOMContentLoaded", () => {
  const name = document.getElementById("kc-attempted-username");
  const label = document.querySelector('label[for="username"]');
  if (name && label) {
    name.setAttribute("aria-label", label.textContent.trim());
  }
  for (const kind of ["totp", "userLabel"]) {
    const field = document.getElementById(kind);
    const words = field?.closest(".pf-v5-c-form__group")?.querySelector("label");
    if (words) {
      words.htmlFor = kind;
    }
  }
  const others = { totp: "otp-code", userLabel: "otp-label" };
  for (const kind of ["username", "password", "password-new", "password-confirm", "otp", "totp", "userLabel"]) {
    const error = document.getElementById(`input-error-${others[kind] ?? kind}`);
    const field = document.getElementById(kind);
    if (error && field) {
      error.setAttribute("role", "alert");
      field.setAttribute("aria-describedby", error.id);
    }
  }
});
