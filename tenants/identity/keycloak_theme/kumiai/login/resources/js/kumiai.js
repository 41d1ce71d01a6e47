// What Keycloak's page shows but does not tell: some fields have no label, or one that names no field, an error is not
// announced, and nothing says what comes after a button.
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
  const picture = document.getElementById("kc-totp-secret-qr-code");
  if (picture) {
    picture.alt = "認証アプリで写す絵（二次元コード）";
  }
  const passkey = document.getElementById("register");
  if (passkey) {
    const words = document.createElement("p");
    words.textContent =
      "「登録する」を押すと、端末が指紋や顔、暗証番号を尋ねます。画面の案内のとおりに進めてください。";
    passkey.before(words);
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
