"""What the realm, its clients and its organizations must look like at Keycloak, and how two such things differ.

Plain data and pure functions; `tenants.identity.keycloak` brings a server in line with them. Only what is named here
is compared: whatever else Keycloak or its administrator keeps is left alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

Json = dict[str, Any]

# What the portal and the commands need at Keycloak in daily work: towns, accounts, passwords, sessions. No more.
DIRECTORY_ROLES: Final = frozenset({"manage-organizations", "manage-users"})
# The folder to be put where Keycloak looks for themes; used where it is found.
THEMES: Final = Path(__file__).parent / "keycloak_theme"
LOGIN_THEME: Final = "kumiai"
ORGANIZATION_MAPPER: Final = "oidc-organization-membership-mapper"
CODE_ATTRIBUTE: Final = "jp.lgcode"
ACCESS_S: Final = 300
SESSION_IDLE_S: Final = 1_800
SESSION_MAX_S: Final = 36_000
EVENTS_KEPT_S: Final = 90 * 86_400
# The dev issuer asks for the same.
MIN_PASSWORD: Final = 10

_BOTH: Final = ["admin", "user"]
_ADMIN: Final = ["admin"]


@dataclass(frozen=True, slots=True)
class RealmSpec:
    """Where the realm is, who may set it up, and what it must know of us.

    `issuer` is the name we trust in tokens; `public_url` is the portal's, without path.
    """

    url: str
    realm: str
    issuer: str
    admin_user: str
    admin_password: str = field(repr=False)
    public_url: str
    portal_client_id: str
    portal_client_secret: str = field(repr=False)
    directory_client_id: str
    directory_client_secret: str = field(repr=False)
    gateway_audience: str
    product_name: str


def realm_settings(spec: RealmSpec, *, themes: frozenset[str] = frozenset()) -> Json:
    """Top-level keys of the realm; Keycloak merges them. themes: those the server has for its sign-in pages."""
    look = {"loginTheme": LOGIN_THEME} if LOGIN_THEME in themes else {}
    return look | {
        "realm": spec.realm,
        "enabled": True,
        "displayName": spec.product_name,
        "organizationsEnabled": True,
        "internationalizationEnabled": True,
        "supportedLocales": ["ja"],
        "defaultLocale": "ja",
        # Accounts are made by the town's administrator, have no e-mail and are named by us.
        "registrationAllowed": False,
        "resetPasswordAllowed": False,
        "verifyEmail": False,
        "loginWithEmailAllowed": False,
        # An e-mail says nothing about who somebody is: with this Keycloak does not look for one at a first sign-in.
        "duplicateEmailsAllowed": True,
        "editUsernameAllowed": False,
        "rememberMe": False,
        "passwordPolicy": f"length({MIN_PASSWORD}) and notUsername(undefined) and passwordHistory(3)",
        # A passkey is tied to the server's own name; whoever holds the device shows that to it, not only that they have it.
        "webAuthnPolicyRpEntityName": spec.product_name,
        "webAuthnPolicyUserVerificationRequirement": "required",
        "bruteForceProtected": True,
        "permanentLockout": False,
        "failureFactor": 5,
        "waitIncrementSeconds": 60,
        "maxFailureWaitSeconds": 900,
        "revokeRefreshToken": True,
        "refreshTokenMaxReuse": 0,
        "accessTokenLifespan": ACCESS_S,
        "ssoSessionIdleTimeout": SESSION_IDLE_S,
        "ssoSessionMaxLifespan": SESSION_MAX_S,
    }


def login_texts() -> dict[str, str]:
    """Keycloak's own Japanese pages in the words of our slips and entry pages."""
    # Keycloak checks the password of whoever is still signed in on this machine, whatever name it shows; its
    # 入れ直す signs that person out. Locked out reads the same on purpose: who guesses must not learn that a name exists.
    refused = (
        "ログイン名かパスワードが違います。続けて間違えると、しばらく入れなくなります。"
        "ほかの人が使った後の端末では、ログイン名の右の「入れ直す」を押してから試してください。"
    )
    return {
        "loginAccountTitle": "サインイン",
        "username": "ログイン名（町の番号.職員番号）",
        "password": "パスワード",
        "invalidUserMessage": refused,
        "accountTemporarilyDisabledMessage": refused,
        "accountDisabledMessage": "このアカウントは止められています。町の管理者に連絡してください。",
        "restartLoginTooltip": "入れ直す",
        "reauthenticate": "今のパスワードを入れてください。",
        "authenticateStrong": "続けるには、2つ目の確認が要ります。",
        "updatePasswordTitle": "新しいパスワードを決めてください",
        "updatePasswordMessage": "初期パスワードは最初の1回だけ使えます。これから使うパスワードを決めてください。",
        "passwordNew": f"新しいパスワード（{MIN_PASSWORD}文字以上）",
        "passwordConfirm": "新しいパスワード（もう一度）",
        "notMatchPasswordMessage": "二つのパスワードが同じではありません。",
        "invalidPasswordConfirmMessage": "二つのパスワードが同じではありません。",
        "missingPasswordMessage": "パスワードを入れてください。",
        "invalidPasswordMinLengthMessage": "パスワードは{0}文字以上にしてください。",
        "invalidPasswordNotUsernameMessage": "ログイン名とは別のパスワードにしてください。",
        "invalidPasswordHistoryMessage": "初期パスワードや、前に使ったものとは別のパスワードにしてください。",
        "doSubmit": "決めて続ける",
        "doCancel": "やめる",
        "logoutOtherSessions": "ほかの端末をサインアウトする",
        "expiredCodeMessage": "時間が過ぎました。もう一度サインインしてください。",
        "errorTitle": "サインインできませんでした",
        "federatedIdentityUnavailableMessage": (
            "この町の職員として登録されていません。町の管理者に、町のアカウントの職員番号で登録を依頼してください。"
        ),
        # What Keycloak says when a number that is linked already comes with another account of the provider.
        "internalServerError": (
            "町の入口からやり直してください。続くときは町の管理者に知らせてください"
            "（町のアカウントを作り直したときも、こうなります）。"
        ),
        "identityProviderUnexpectedErrorMessage": (
            "町のアカウントを確かめられませんでした。町の入口からやり直し、続くときは町の管理者に知らせてください。"
        ),
        "loginTotpTitle": "認証アプリを登録する",
        "loginTotpIntro": "スマートフォンの認証アプリに登録すると、サインインのたびに6桁の番号を尋ねます。",
        "loginTotpStep1": "スマートフォンに、次のどれかのアプリを入れます。",
        "loginTotpStep2": "アプリを開き、次の絵を写します。",
        "loginTotpManualStep2": "アプリを開き、次の文字を入れます。",
        "loginTotpManualStep3": "アプリで選べるときは、次のとおりにします。",
        "loginTotpStep3": "アプリに出た6桁の番号を入れます。",
        "loginTotpStep3DeviceName": "端末の名前を付けると、後で見分けられます。",
        "loginTotpUnableToScan": "写せないとき",
        "loginTotpScanBarcode": "絵を写すとき",
        "loginTotpDeviceName": "端末の名前",
        "authenticatorCode": "6桁の番号",
        "loginOtpOneTime": "認証アプリの6桁の番号",
        "doLogIn": "サインイン",
        "invalidTotpMessage": "番号が違います。アプリに出ている新しい番号を入れてください。",
        "missingTotpMessage": "番号を入れてください。",
        "webauthn-registration-title": "パスキーを登録する",
        "webauthn-login-title": "パスキーで確かめる",
        "webauthn-doAuthenticate": "パスキーで確かめる",
        "webauthn-display-name": "パスキー",
        "webauthn-available-authenticators": "登録したパスキー",
        "webauthn-registration-init-label": "パスキー",
        "webauthn-registration-init-label-prompt": "パスキーの名前を付けてください",
        "webauthn-error-title": "パスキーを使えませんでした",
        # As they are, they quote what the browser says, in English.
        **dict.fromkeys(
            ("webauthn-error-registration", "webauthn-error-register-verification"),
            "パスキーを登録できませんでした。もう一度試してください。"
            "この端末で登録できないときは、やめて、認証アプリを登録してください。",
        ),
        **dict.fromkeys(
            ("webauthn-error-api-get", "webauthn-error-auth-verification"),
            "パスキーで確かめられませんでした。もう一度試してください。",
        ),
        "webauthn-createdAt-label": "登録した日時",
        "internal": "この端末",
        "webauthn-unsupported-browser-text": (
            "このブラウザーではパスキーを使えません。別のブラウザーか、認証アプリを使ってください。"
        ),
        "doTryAgain": "もう一度試す",
        "doRegisterSecurityKey": "登録する",
        "doTryAnotherWay": "ほかの方法で確かめる",
        "loginChooseAuthenticator": "確かめる方法を選ぶ",
        "otp-display-name": "認証アプリ",
        "otp-help-text": "アプリに出た6桁の番号を入れます。",
        "webauthn-help-text": "指紋や顔、端末の暗証番号で確かめます。",
        "logoutConfirmTitle": "サインアウト",
        "logoutConfirmHeader": "サインアウトしますか。",
        "doLogout": "サインアウト",
    }


def events_settings() -> Json:
    return {
        "eventsEnabled": True,
        "eventsExpiration": EVENTS_KEPT_S,
        "eventsListeners": ["jboss-logging"],
        "adminEventsEnabled": True,
        "adminEventsDetailsEnabled": True,
    }


def password_action() -> Json:
    """Who wants another password is asked for the present one each time; by default not within 5 min of signing in.

    An unattended machine must not give the account away for good.
    """
    return {"config": {"max_auth_age": "0"}}


def signing_key(realm_id: str) -> Json:
    return {
        "name": "es256",
        "providerId": "ecdsa-generated",
        "providerType": "org.keycloak.keys.KeyProvider",
        "parentId": realm_id,
        "config": {
            "priority": ["300"],
            "enabled": ["true"],
            "active": ["true"],
            "ecdsaEllipticCurveKey": ["P-256"],
        },
    }


def signs_es256(component: Mapping[str, Any]) -> bool:
    """Whether a key provider signs ES256 now; a successor with another name counts, so that keys can be rotated."""
    config = component.get("config", {})
    return (
        component.get("providerId") == "ecdsa-generated"
        and config.get("ecdsaEllipticCurveKey", ["P-256"]) == ["P-256"]
        and config.get("enabled", ["true"]) == ["true"]
        and config.get("active", ["true"]) == ["true"]
    )


def profile_with_optional_names(found: Json) -> Json:
    """The user profile with nothing demanded from a clerk, and e-mail and names in the administrator's hand only.

    An e-mail that its owner may change must never say which town somebody belongs to.
    """
    attributes = []
    for attribute in found.get("attributes", ()):
        changed = dict(attribute)
        if changed.get("name") in ("email", "firstName", "lastName"):
            changed.pop("required", None)
            changed["permissions"] = {"view": _BOTH, "edit": _ADMIN}
        attributes.append(changed)
    return {**found, "attributes": attributes}


def organization_mapper() -> Json:
    """The token carries the organization's id: `{"t132063": {"id": "…"}}`."""
    return {
        "name": "organization",
        "protocol": "openid-connect",
        "protocolMapper": ORGANIZATION_MAPPER,
        "config": {
            "claim.name": "organization",
            "jsonType.label": "JSON",
            "multivalued": "true",
            "addOrganizationId": "true",
            "addOrganizationAttributes": "false",
            "access.token.claim": "true",
            "id.token.claim": "true",
            "introspection.token.claim": "true",
        },
    }


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """A client, its scopes and its mappers. `settings` are compared key by key, the rest as whole sets."""

    settings: Json
    default_scopes: frozenset[str]
    optional_scopes: frozenset[str] = frozenset()
    mappers: tuple[Json, ...] = ()
    # Of the realm's own `realm-management`, for the client's service account.
    service_roles: frozenset[str] = frozenset()


def portal_client(spec: RealmSpec) -> ClientSpec:
    return ClientSpec(
        settings={
            "clientId": spec.portal_client_id,
            "enabled": True,
            "protocol": "openid-connect",
            "publicClient": False,
            "secret": spec.portal_client_secret,
            "standardFlowEnabled": True,
            "directAccessGrantsEnabled": False,
            "implicitFlowEnabled": False,
            "serviceAccountsEnabled": False,
            "fullScopeAllowed": False,
            "frontchannelLogout": False,
            "consentRequired": False,
            "redirectUris": [f"{spec.public_url}/auth/callback"],
            "webOrigins": [],
            "attributes": {
                "pkce.code.challenge.method": "S256",
                "post.logout.redirect.uris": f"{spec.public_url}/?why=signed_out",
                "backchannel.logout.url": f"{spec.public_url}/auth/backchannel-logout",
                "backchannel.logout.session.required": "true",
                "access.token.lifespan": str(ACCESS_S),
                "access.token.header.type.rfc9068": "true",
                "access.token.signed.response.alg": "ES256",
                "id.token.signed.response.alg": "ES256",
                "client.session.idle.timeout": str(SESSION_IDLE_S),
                "client.session.max.lifespan": str(SESSION_MAX_S),
            },
        },
        # Names, e-mail and roles stay out of every token: ours are in our database.
        default_scopes=frozenset({"basic"}),
        optional_scopes=frozenset({"organization"}),
        mappers=(
            {
                "name": "aud-gateway",
                "protocol": "openid-connect",
                "protocolMapper": "oidc-audience-mapper",
                "config": {
                    "included.client.audience": spec.gateway_audience,
                    "access.token.claim": "true",
                    "id.token.claim": "false",
                },
            },
            {"name": "acr", "protocol": "openid-connect", "protocolMapper": "oidc-acr-mapper", "config": _IN_BOTH},
            _session_note("provider", "identity_provider"),
            _session_note("provider_acr", "acr"),
        ),
    )


_IN_BOTH: Final = {"access.token.claim": "true", "id.token.claim": "true"}


def _session_note(claim: str, note: str) -> Json:
    """By which of the towns' providers somebody came, and what it said: kept by Keycloak with the session."""
    return {
        "name": claim.replace("_", "-"),
        "protocol": "openid-connect",
        "protocolMapper": "oidc-usersessionmodel-note-mapper",
        "config": {"user.session.note": note, "claim.name": claim, "jsonType.label": "String", **_IN_BOTH},
    }


def gateway_client(spec: RealmSpec) -> ClientSpec:
    """An audience and nothing else: no flow of it is on."""
    return ClientSpec(
        settings={
            "clientId": spec.gateway_audience,
            "enabled": True,
            "protocol": "openid-connect",
            "publicClient": False,
            "standardFlowEnabled": False,
            "directAccessGrantsEnabled": False,
            "implicitFlowEnabled": False,
            "serviceAccountsEnabled": False,
            "fullScopeAllowed": False,
            "redirectUris": [],
            "webOrigins": [],
        },
        default_scopes=frozenset(),
    )


def directory_client(spec: RealmSpec) -> ClientSpec:
    """The account of our own processes: it signs in by itself and may do what `DIRECTORY_ROLES` say."""
    return ClientSpec(
        settings={
            "clientId": spec.directory_client_id,
            "enabled": True,
            "protocol": "openid-connect",
            "publicClient": False,
            "secret": spec.directory_client_secret,
            "standardFlowEnabled": False,
            "directAccessGrantsEnabled": False,
            "implicitFlowEnabled": False,
            "serviceAccountsEnabled": True,
            "fullScopeAllowed": False,
            "redirectUris": [],
            "webOrigins": [],
            "attributes": {"access.token.lifespan": str(ACCESS_S)},
        },
        # `roles` puts what the account may do into its token, which is what the administration looks at.
        default_scopes=frozenset({"basic", "roles"}),
        service_roles=DIRECTORY_ROLES,
    )


@dataclass(frozen=True, slots=True)
class OrganizationSpec:
    """A town at the issuer. `alias` never changes; `enabled` None leaves it as it is found."""

    alias: str
    name: str
    code: str
    enabled: bool | None = None

    def created(self) -> Json:
        return {
            "alias": self.alias,
            "name": self.name,
            "enabled": self.enabled is not False,
            "attributes": {CODE_ATTRIBUTE: [self.code]},
        }

    def changed(self, found: Json) -> Json | None:
        """The full object to put, or None when it is as wanted.

        A PUT without `enabled` re-enables a suspended town and one without `domains` takes them away: all of it is sent.
        """
        attributes = found.get("attributes") or {}
        wanted = {
            **found,
            "name": self.name,
            "enabled": found.get("enabled", True) if self.enabled is None else self.enabled,
            "domains": found.get("domains") or [],
            "attributes": {**attributes, CODE_ATTRIBUTE: [self.code]},
        }
        as_found = {**found, "domains": found.get("domains") or [], "attributes": attributes}
        return None if wanted == as_found else wanted


@dataclass(frozen=True, slots=True)
class FlowStep:
    """A step of a flow at Keycloak, or with `steps` a flow below it. `does`: the step's provider, or the flow's alias."""

    requirement: Literal["REQUIRED", "ALTERNATIVE", "CONDITIONAL"]
    does: str
    config: Mapping[str, str] = field(default_factory=dict)
    steps: tuple["FlowStep", ...] = ()


# Who is known by name is linked, and nobody else is let in.
FIRST_SIGN_IN: Final = "kumiai first sign-in"
FIRST_SIGN_IN_STEPS: Final = (
    FlowStep("REQUIRED", "idp-detect-existing-broker-user"),
    FlowStep("REQUIRED", "idp-auto-link"),
)

SIGN_IN: Final = "kumiai sign-in"
AFTER_PROVIDER: Final = "kumiai after a town's provider"
# `acr` of a sign-in with a second factor, as a portal asks for it and as tokens tell it; with a password alone it is 1.
PASSWORD_LEVEL: Final = "1"  # noqa: S105 - a level's number
SECOND_FACTOR_LEVEL: Final = "2"


def _level(number: str) -> FlowStep:
    """Whether this level is asked for and was not reached in the running session."""
    config = {"loa-condition-level": number, "loa-max-age": str(SESSION_MAX_S)}
    return FlowStep("REQUIRED", "conditional-level-of-authentication", config)


_WHAT_IS_REGISTERED: Final = (
    FlowStep("REQUIRED", "conditional-user-configured"),
    FlowStep("ALTERNATIVE", "auth-otp-form"),
    FlowStep("ALTERNATIVE", "webauthn-authenticator"),
)


def _second_factor(flow: str) -> tuple[FlowStep, ...]:
    """Whoever has registered one is asked for it, also by a client that asks for no level.

    A password alone, ours or that of a town's provider, must not lead to where a factor is added or taken away.
    """
    asked = f"{flow}: second factor"
    unless_asked = {"flow_to_check": asked, "check_result": "not-executed"}
    return (
        FlowStep("CONDITIONAL", asked, steps=(_level(SECOND_FACTOR_LEVEL), *_WHAT_IS_REGISTERED)),
        FlowStep("CONDITIONAL", f"{flow}: second factor unasked", steps=(
            FlowStep("REQUIRED", "conditional-sub-flow-executed", unless_asked), *_WHAT_IS_REGISTERED,
        )),
        # With every level reached before, all the steps above are left out, and a flow of which no step ran fails.
        FlowStep("REQUIRED", "allow-access-authenticator"),
    )  # fmt: skip


SIGN_IN_STEPS: Final = (
    FlowStep("ALTERNATIVE", "auth-cookie"),
    FlowStep("ALTERNATIVE", "identity-provider-redirector"),
    FlowStep("ALTERNATIVE", f"{SIGN_IN}: town", steps=(
        FlowStep("CONDITIONAL", f"{SIGN_IN}: town by name", steps=(
            FlowStep("REQUIRED", "conditional-user-configured"),
            FlowStep("ALTERNATIVE", "organization"),
        )),
    )),
    FlowStep("ALTERNATIVE", f"{SIGN_IN}: forms", steps=(
        FlowStep("CONDITIONAL", f"{SIGN_IN}: password", steps=(
            _level(PASSWORD_LEVEL), FlowStep("REQUIRED", "auth-username-password-form"),
        )),
        *_second_factor(SIGN_IN),
    )),
)  # fmt: skip
# The way through a town's own provider counts as a password, unless the town says more of it.
AFTER_PROVIDER_STEPS: Final = (
    FlowStep("CONDITIONAL", f"{AFTER_PROVIDER}: come", steps=(
        _level(PASSWORD_LEVEL), FlowStep("REQUIRED", "allow-access-authenticator"),
    )),
    *_second_factor(AFTER_PROVIDER),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """A town's own identity provider (OpenID Connect or SAML), trusted for the staff numbers of that town alone.

    town: the organization's alias. source: where its discovery document or metadata is read. staff_claim: the claim or
    attribute that holds the number under which a person was imported.
    """

    town: str
    name: str
    label: str
    kind: Literal["oidc", "saml"]
    source: str
    staff_claim: str
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    scope: str = "openid"
    # What its `acr` is when it has asked for a second factor itself; empty: it does not say (OpenID Connect only).
    second_factor_acr: str = ""

    @property
    def alias(self) -> str:
        return provider_alias(self.town, self.name)

    def settings(self, imported: Mapping[str, Any]) -> Json:
        """Everything but whether it is enabled, and its secret. imported: what Keycloak read at `source`."""
        config: Json = {
            **imported,
            # Nothing about a person is taken over after the first sign-in: names and e-mail stay out of the realm.
            "syncMode": "IMPORT",
            "kumiai.source": self.source,
        }
        if self.kind == "oidc":
            config |= {
                "clientId": self.client_id,
                "clientAuthMethod": "client_secret_post",
                "defaultScope": self.scope,
                "validateSignature": "true",
                "useJwksUrl": "true",
                "pkceEnabled": "true",
                "pkceMethod": "S256",
            }
        else:
            config |= {
                "principalType": "SUBJECT",
                "validateSignature": "true",
                "wantAssertionsSigned": "true",
                "postBindingResponse": "true",
            }
        return {
            "alias": self.alias,
            "providerId": self.kind,
            "displayName": self.label,
            "trustEmail": False,
            "storeToken": False,
            "addReadTokenRoleOnCreate": False,
            "linkOnly": False,
            # Other towns' people see a choice of strangers' providers otherwise.
            "hideOnLogin": True,
            "firstBrokerLoginFlowAlias": FIRST_SIGN_IN,
            "postBrokerLoginFlowAlias": AFTER_PROVIDER,
            "config": config,
        }

    def mappers(self) -> tuple[Json, ...]:
        """Names whoever comes `<town>.<staff number>`: whatever a provider says, it names nobody of another town.

        What it says of a second factor is kept with the session, for our own tokens to tell.
        """
        kind, value = ("oidc", "CLAIM") if self.kind == "oidc" else ("saml", "ATTRIBUTE")
        number = {
            "name": "staff-number",
            "identityProviderAlias": self.alias,
            "identityProviderMapper": f"{kind}-username-idp-mapper",
            "config": {
                "template": f"{self.town}.${{{value}.{self.staff_claim}}}",
                "target": "LOCAL",
                "syncMode": "IMPORT",
            },
        }
        if not self.second_factor_acr:
            return (number,)
        level = {
            "name": "second-factor",
            "identityProviderAlias": self.alias,
            "identityProviderMapper": "oidc-user-session-note-idp-mapper",
            "config": {
                "claims": json.dumps([{"key": "acr", "value": self.second_factor_acr}]),
                "are.claim.values.regex": "false",
                "syncMode": "FORCE",
            },
        }
        return (number, level)


def provider_alias(town: str, name: str) -> str:
    """Unique over the realm, for towns' aliases are and hold no hyphen."""
    return f"{town}-{name}"


@dataclass(frozen=True, slots=True)
class AccountSpec:
    """A person's account in one town: open, or closed if it exists at all."""

    alias: str
    login: str
    enabled: bool


def differing(wanted: Json, found: Mapping[str, Any]) -> Json:
    """The wanted keys whose value is another one; inside `attributes` and `config` likewise; lists as sets."""
    changed: Json = {}
    for key, value in wanted.items():
        now = found.get(key)
        if key in ("attributes", "config"):
            inner = differing(value, now or {})
            if inner:
                changed[key] = inner
        elif isinstance(value, list) and isinstance(now, list):
            if sorted(value) != sorted(now):
                changed[key] = value
        elif value != now and not (value == [] and now is None):
            changed[key] = value
    return changed
