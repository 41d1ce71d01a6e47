"""Keycloak's administration: list, compare, write what differs. A second run writes nothing.

python-keycloak signs in and keeps the token fresh; every call goes through `Admin`, because the library's own methods
change the query they are given, stop at 100 identity providers, retry a POST and take an id token for an access token.
What must hold is in `tenants.identity.realm`; why, in docs/adr.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby
from typing import Any, ClassVar, Final, Literal, TypeVar
from urllib.parse import quote

from keycloak import KeycloakOpenIDConnection
from keycloak.exceptions import KeycloakConnectionError, KeycloakError

from observability.problems import Conflict, InvalidInput, NotFound, Unavailable
from tenants.identity.one_writer import OneWriter, alone
from tenants.identity.realm import (
    AFTER_PROVIDER,
    AFTER_PROVIDER_STEPS,
    CODE_ATTRIBUTE,
    FIRST_SIGN_IN,
    FIRST_SIGN_IN_STEPS,
    SIGN_IN,
    SIGN_IN_STEPS,
    AccountSpec,
    ClientSpec,
    FlowStep,
    Json,
    OrganizationSpec,
    ProviderSpec,
    RealmSpec,
    differing,
    directory_client,
    events_settings,
    gateway_client,
    login_texts,
    organization_mapper,
    password_action,
    portal_client,
    profile_with_optional_names,
    realm_settings,
    signing_key,
    signs_es256,
)

__all__ = [
    "Changes",
    "KeycloakDirectory",
    "OrganizationSpec",
    "RealmSpec",
    "reconcile_accounts",
    "reconcile_organizations",
    "reconcile_provider",
    "reconcile_realm",
    "remove_provider",
]

# The first list after a restart of a server with 1,741 organizations was seen to take 7 s.
TIMEOUT_S: Final = 60
PAGE: Final = 500
_TRIES: Final = 3
# Keycloak's kinds of what is asked for beside a password.
SECOND_FACTORS: Final = frozenset({"otp", "webauthn"})

T = TypeVar("T")
# What is told of a write, and the write.
Step = tuple[str, Callable[[], object]]


class KeycloakProblem(Unavailable):
    """For whoever is at a page: later, or the operator. `hint` is for the operator at the command line and for the log."""

    def __init__(self, hint: str) -> None:
        super().__init__("数分待ってから、もう一度試してください。続くときは、共同利用の事務局に知らせてください。")
        self.hint = hint


class KeycloakUnavailable(KeycloakProblem):
    type = "urn:problem:identity:keycloak-unavailable"
    title = "アカウントの管理（Keycloak）につながりません"


class KeycloakRefused(KeycloakProblem):
    type = "urn:problem:identity:keycloak-refused"
    title = "アカウントの管理（Keycloak）に入れません"


class KeycloakFailed(KeycloakProblem):
    type = "urn:problem:identity:keycloak-failed"
    title = "アカウントの管理（Keycloak）が処理できませんでした"


class OtherIssuer(InvalidInput):
    type = "urn:problem:identity:other-issuer"
    title = "発行者の名前が、設定と違います"


class _Unsure(Exception):
    """A write was answered 409 or 5xx, or not at all: only reading again tells what holds now."""


@dataclass(slots=True)
class Changes:
    """What was written, in words and as a number, and the ids at Keycloak of what was asked for."""

    lines: list[str] = field(default_factory=list)
    writes: int = 0
    organization_ids: dict[str, str] = field(default_factory=dict)
    subs: dict[tuple[str, str], str] = field(default_factory=dict)
    without_password: int = 0

    def tell(self, words: str, *, writes: int = 1) -> None:
        self.writes += writes
        if words:
            self.lines.append(words)


@dataclass(frozen=True, slots=True)
class Administrator:
    """Of the whole server; sets up the realm, and is not needed afterwards."""

    user: str
    password: str = field(repr=False)
    settings: ClassVar[str] = "KUMIAI_KEYCLOAK_ADMIN_USER と KUMIAI_KEYCLOAK_ADMIN_PASSWORD"


@dataclass(frozen=True, slots=True)
class DirectoryClient:
    """Of our realm's towns and accounts only; the client that `keycloak up` makes."""

    client_id: str
    secret: str = field(repr=False)
    settings: ClassVar[str] = "KUMIAI_KEYCLOAK_CLIENT_ID と KUMIAI_KEYCLOAK_CLIENT_SECRET"


Credentials = Administrator | DirectoryClient


class Admin:
    """One administrator's calls below /admin/realms/<realm>. Not shared between threads."""

    def __init__(self, url: str, realm: str, who: Credentials) -> None:
        self._url = url
        self._base = f"admin/realms/{realm}"
        self._settings = who.settings
        if isinstance(who, Administrator):
            access = {"username": who.user, "password": who.password, "user_realm_name": "master"}
        else:
            access = {"client_id": who.client_id, "client_secret_key": who.secret}
        self._connection = KeycloakOpenIDConnection(
            server_url=url.rstrip("/") + "/", realm_name=realm, timeout=TIMEOUT_S, max_retries=0, **access
        )

    def get(self, path: str, **query: str | int) -> Any:
        """The JSON found, or None. A read is tried once more when the connection was lost."""
        for last in (False, True):
            try:
                response = self._call("get", path, query=query)
            except KeycloakUnavailable:
                if last:
                    raise
                continue
            if response.status_code == 404:
                return None
            if response.status_code == 200:
                return response.json()
            break
        raise KeycloakFailed(f"GET {path}: {response.status_code}")

    def pages(self, path: str, **query: str | int) -> Iterator[Json]:
        """Every row of a list; Keycloak's own default stops at 10 or 100."""
        first = 0
        while True:
            rows = self.get(path, first=first, max=PAGE, **query) or []
            yield from rows
            if len(rows) < PAGE:
                return
            first += PAGE

    def write(self, verb: Literal["post", "put", "delete"], path: str, body: object = None) -> str:
        """The new object's id, if one was made. Raises `_Unsure`, `NotFound`, `KeycloakFailed`."""
        try:
            response = self._call(verb, path, body=body)
        except KeycloakUnavailable as error:
            raise _Unsure(str(error)) from error
        status = response.status_code
        if status == 409 or status >= 500:
            raise _Unsure(f"{verb} {path}: {status} {_message(response)}")
        if status == 404:
            raise NotFound
        if status >= 400:
            raise KeycloakFailed(f"{verb.upper()} {path}: {status} {_message(response)}")
        return str(response.headers.get("Location", "")).rsplit("/", 1)[-1]

    def ask(self, path: str, body: Json) -> Json | None:
        """What Keycloak makes of a question that changes nothing; None when it cannot."""
        response = self._call("post", path, body=body)
        found: Json | None = response.json() if response.status_code == 200 else None
        return found

    def login_themes(self) -> frozenset[str]:
        """Names of the themes for sign-in pages that are installed at the server."""
        response = self._call("get", "admin/serverinfo", below_realm=False)
        if response.status_code != 200:
            return frozenset()
        return frozenset(t["name"] for t in response.json()["themes"]["login"])

    def issuer(self) -> str:
        """What the realm calls itself in tokens."""
        realm = self._base.removeprefix("admin/realms/")
        response = self._call("get", f"realms/{realm}/.well-known/openid-configuration", below_realm=False)
        return str(response.json()["issuer"]) if response.status_code == 200 else ""

    def create_realm(self, body: Json) -> None:
        response = self._call("post", "admin/realms", body=body, below_realm=False)
        if response.status_code not in (201, 409):
            raise KeycloakFailed(f"POST realm: {response.status_code} {_message(response)}")

    def _call(
        self,
        verb: str,
        path: str,
        *,
        body: object = None,
        query: dict[str, Any] | None = None,
        below_realm: bool = True,
    ) -> Any:
        url = f"{self._base}{path}" if below_realm else path
        connection = self._connection
        try:
            if verb == "get":
                response = connection.raw_get(url, **(query or {}))
            elif verb == "delete":
                response = connection.raw_delete(url, data=None if body is None else json.dumps(body))
            else:
                send = connection.raw_post if verb == "post" else connection.raw_put
                response = send(url, data="" if body is None else json.dumps(body))
        except KeycloakConnectionError as error:
            raise KeycloakUnavailable(
                f"{self._url} が応えません。動いているか、KUMIAI_KEYCLOAK_URL が正しいかを確かめてください。"
            ) from error
        except KeycloakError as error:
            # OAuth's own refusals, and no other server's.
            if error.response_code in (400, 401) and b'"error"' in (error.response_body or b""):
                raise KeycloakRefused(f"{self._settings} を確かめてください。") from error
            raise KeycloakUnavailable(
                f"{self._url} は Keycloak のようには応えません（{error.response_code}）。KUMIAI_KEYCLOAK_URL を確かめてください。"
            ) from error
        if response.status_code in (401, 403):
            raise KeycloakRefused(
                f"権限が足りません（{verb.upper()} {path}）。{self._settings} が正しければ、kumiai keycloak up で直せます。"
            )
        return response


def _message(response: Any) -> str:
    try:
        told = response.json()
    except ValueError:
        return ""
    return str(told.get("errorMessage") or told.get("error_description") or told.get("error") or "")[:200]


class _Reconciler:
    """Reads, decides, writes; after an unsure write it reads again and decides anew."""

    def __init__(self, admin: Admin) -> None:
        self.admin = admin
        self.changes = Changes()

    def settle(self, attempt: Callable[[], T]) -> T:
        """Tries what reads before it writes until no write is unsure. Raises `KeycloakFailed`."""
        unsure: _Unsure | None = None
        for _ in range(_TRIES):
            try:
                return attempt()
            except _Unsure as error:
                unsure = error
        # A server that is away is said to be away, not to have failed.
        if unsure is not None and isinstance(unsure.__cause__, KeycloakUnavailable):
            raise unsure.__cause__
        raise KeycloakFailed(str(unsure)) from unsure

    def bring(self, read: Callable[[], T], decide: Callable[[T], Step | None]) -> T:
        """One object: returns what was found, before it was changed if it was."""

        def attempt() -> T:
            found = read()
            step = decide(found)
            if step is not None:
                words, write = step
                write()
                self.changes.tell(words)
            return found

        return self.settle(attempt)

    # ── realm ────────────────────────────────────────────────────────────────────────────────────────────────────

    def realm(self, spec: RealmSpec) -> None:
        wanted = realm_settings(spec, themes=self.admin.login_themes())

        def decide(found: Json | None) -> Step | None:
            if found is None:
                return f"レルム {spec.realm} を作りました", lambda: self.admin.create_realm(wanted)
            changed = differing(wanted, found)
            if not changed:
                return None
            # The realm is sent only what differs: a PUT of all that was read is not a fixed point.
            words = f"レルム {spec.realm} の {'、'.join(sorted(changed))} を直しました"
            return words, lambda: self.admin.write("put", "", changed)

        self.bring(lambda: self.admin.get(""), decide)

    def events(self) -> None:
        def decide(found: Json) -> Step | None:
            changed = differing(events_settings(), found)
            body = {**found, **changed}
            return (
                ("記録の設定を直しました", lambda: self.admin.write("put", "/events/config", body)) if changed else None
            )

        self.bring(lambda: self.admin.get("/events/config"), decide)

    def key(self) -> None:
        """An ES256 key. A second POST would make a twin, so a lost answer is followed by reading."""
        realm_id = self.admin.get("")["id"]

        def decide(found: list[Json]) -> Step | None:
            if any(signs_es256(component) for component in found):
                return None
            return "署名の鍵（ES256）を作りました", lambda: self.admin.write(
                "post", "/components", signing_key(realm_id)
            )

        self.bring(lambda: self.admin.get("/components", type="org.keycloak.keys.KeyProvider"), decide)

    def profile(self) -> None:
        def decide(found: Json) -> Step | None:
            wanted = profile_with_optional_names(found)
            if wanted == found:
                return None
            return "利用者の項目（メールと氏名は任意、管理者だけが変更）を直しました", lambda: self.admin.write(
                "put", "/users/profile", wanted
            )

        self.bring(lambda: self.admin.get("/users/profile"), decide)

    def password_action(self) -> None:
        path = "/authentication/required-actions/UPDATE_PASSWORD/config"

        def decide(found: Json | None) -> Step | None:
            if found is None:
                raise KeycloakFailed("required action UPDATE_PASSWORD")
            changed = differing(password_action(), found)
            if not changed:
                return None
            body = {"config": {**found["config"], **changed["config"]}}
            return "パスワードを変える前に今のものを尋ねるようにしました", lambda: self.admin.write("put", path, body)

        self.bring(lambda: self.admin.get(path), decide)

    def texts(self) -> None:
        wanted = login_texts()

        def decide(found: dict[str, str]) -> Step | None:
            changed = {key: text for key, text in wanted.items() if found.get(key) != text}
            if not changed:
                return None
            return f"サインイン画面の文言{len(changed)}件を直しました", lambda: self.admin.write(
                "post", "/localization/ja", changed
            )

        self.bring(lambda: self.admin.get("/localization/ja") or {}, decide)

    # ── clients ──────────────────────────────────────────────────────────────────────────────────────────────────

    def no_password_grant(self) -> None:
        """`admin-cli` would tell anybody whether a password is right, past every second factor."""

        def decide(found: list[Json]) -> Step | None:
            [client] = found
            if not client["directAccessGrantsEnabled"]:
                return None
            body = {"clientId": "admin-cli", "directAccessGrantsEnabled": False}
            return "admin-cli のパスワードによる取得を止めました", lambda: self.admin.write(
                "put", f"/clients/{client['id']}", body
            )

        self.bring(lambda: self.admin.get("/clients", clientId="admin-cli"), decide)

    def organization_scope(self) -> None:
        def scope() -> Json | None:
            return next((s for s in self.admin.get("/client-scopes") or [] if s["name"] == "organization"), None)

        def decide_scope(found: Json | None) -> Step | None:
            if found is not None:
                return None
            body = {"name": "organization", "protocol": "openid-connect"}
            return "スコープ organization を作りました", lambda: self.admin.write("post", "/client-scopes", body)

        self.bring(scope, decide_scope)
        found = scope()
        if found is None:
            raise KeycloakFailed("client scope organization")
        path = f"/client-scopes/{found['id']}/protocol-mappers/models"
        # Two mappers on one claim would make it an array.
        self.settle(lambda: self.mappers(path, (organization_mapper(),), "スコープ organization", by="protocolMapper"))

    def client(self, wanted: ClientSpec) -> None:
        client_id = wanted.settings["clientId"]

        def read() -> Json | None:
            found = self.admin.get("/clients", clientId=client_id) or [None]
            client: Json | None = found[0]
            return client

        def decide(found: Json | None) -> Step | None:
            if found is None:
                body = {
                    **wanted.settings,
                    "defaultClientScopes": sorted(wanted.default_scopes),
                    "optionalClientScopes": sorted(wanted.optional_scopes),
                    "protocolMappers": list(wanted.mappers),
                }
                return f"クライアント {client_id} を作りました", lambda: self.admin.write("post", "/clients", body)
            changed = differing(wanted.settings, found)
            if not changed:
                return None
            words = f"クライアント {client_id} の {'、'.join(_names(changed))} を直しました"
            # All of it: a PUT of redirect URIs alone makes web origins of them.
            return words, lambda: self.admin.write("put", f"/clients/{found['id']}", wanted.settings)

        self.bring(read, decide)
        found = read()
        if found is None:
            raise KeycloakFailed(f"client {client_id}")
        path, where = f"/clients/{found['id']}", f"クライアント {client_id}"
        self.settle(lambda: self.scopes(f"{path}/default-client-scopes", wanted.default_scopes, where))
        self.settle(lambda: self.scopes(f"{path}/optional-client-scopes", wanted.optional_scopes, where))
        self.settle(lambda: self.mappers(f"{path}/protocol-mappers/models", wanted.mappers, where))
        if wanted.service_roles:
            account = self.admin.get(f"{path}/service-account-user")
            management = self.admin.get("/clients", clientId="realm-management")[0]["id"]
            self.settle(
                lambda: self.roles(
                    f"/users/{account['id']}/role-mappings", management, wanted.service_roles, f"{where} のアカウント"
                )
            )
            self.settle(
                lambda: self.roles(
                    f"{path}/scope-mappings", management, wanted.service_roles, f"{where} のトークンに載るもの"
                )
            )

    def roles(self, path: str, management: str, wanted: frozenset[str], where: str) -> None:
        """Exactly these roles of the realm's own administration."""
        path = f"{path}/clients/{management}"
        found = {r["name"]: r for r in self.admin.get(path) or []}
        surplus = [role for name, role in sorted(found.items()) if name not in wanted]
        missing = [self.admin.get(f"/clients/{management}/roles/{name}") for name in sorted(wanted - found.keys())]
        if surplus:
            self.admin.write("delete", path, surplus)
            self.changes.tell(f"{where} の権限 {'、'.join(r['name'] for r in surplus)} を外しました")
        if missing:
            self.admin.write("post", path, missing)
            self.changes.tell(f"{where} に権限 {'、'.join(r['name'] for r in missing)} を加えました")

    def scopes(self, path: str, wanted: frozenset[str], where: str) -> None:
        """Exactly these scopes; those that Keycloak gives every new client are taken away."""
        found = {s["name"]: s["id"] for s in self.admin.get(path) or []}
        known = {s["name"]: s["id"] for s in self.admin.get("/client-scopes") or []} if wanted - found.keys() else {}
        for name in sorted(wanted ^ found.keys()):
            verb: Literal["put", "delete"] = "put" if name in wanted else "delete"
            if verb == "put" and name not in known:
                raise KeycloakFailed(f"client scope {name}")
            self.admin.write(verb, f"{path}/{known[name] if verb == 'put' else found[name]}")
            words = "加えました" if verb == "put" else "外しました"
            self.changes.tell(f"{where} のスコープ {name} を{words}")

    def mappers(self, path: str, wanted: tuple[Json, ...], where: str, *, by: str = "name") -> None:
        """Exactly these mappers: one too many puts into tokens what nobody decided to put there."""
        found: dict[str, Json] = {}
        for mapper in self.admin.get(path) or []:
            if mapper[by] in {w[by] for w in wanted} - found.keys():
                found[mapper[by]] = mapper
            else:
                self.admin.write("delete", f"{path}/{mapper['id']}")
                self.changes.tell(f"{where} のマッパー {mapper['name']} を消しました")
        for mapper in wanted:
            now = found.get(mapper[by])
            if now is None:
                self.admin.write("post", path, mapper)
                self.changes.tell(f"{where} にマッパー {mapper['name']} を加えました")
            elif differing({"config": mapper["config"]}, now):
                body = {**now, "config": {**now["config"], **mapper["config"]}}
                self.admin.write("put", f"{path}/{now['id']}", body)
                self.changes.tell(f"{where} のマッパー {mapper['name']} を直しました")

    # ── ways of signing in ───────────────────────────────────────────────────────────────────────────────────────

    def ways_in(self) -> None:
        """Our own flows. The one for everybody is put to use when it is whole."""
        self.flow(FIRST_SIGN_IN, FIRST_SIGN_IN_STEPS)
        self.flow(AFTER_PROVIDER, AFTER_PROVIDER_STEPS)
        self.flow(SIGN_IN, SIGN_IN_STEPS)

        def decide(found: Json) -> Step | None:
            if found["browserFlow"] == SIGN_IN:
                return None
            words = f"サインインの流れを「{SIGN_IN}」にしました"
            return words, lambda: self.admin.write("put", "", {"browserFlow": SIGN_IN})

        self.bring(lambda: self.admin.get(""), decide)

    def flow(self, alias: str, steps: tuple[FlowStep, ...]) -> None:
        """A flow of exactly these steps. One of another shape is made anew in its place."""

        def decide(found: Json | None) -> Step | None:
            if found is not None:
                return None
            body = {"alias": alias, "providerId": "basic-flow", "topLevel": True, "builtIn": False}
            return f"流れ「{alias}」を作りました", lambda: self.admin.write("post", "/authentication/flows", body)

        def named() -> Json | None:
            return next((f for f in self.admin.get("/authentication/flows") if f["alias"] == alias), None)

        self.bring(named, decide)
        self.settle(lambda: self.steps(alias, steps))

    def steps(self, alias: str, steps: tuple[FlowStep, ...]) -> None:
        path = _executions(alias)
        wanted = list(_flat(steps))
        found = self.admin.get(path) or []
        is_new = [_shape(e) for e in found] != [(level, step.does) for level, step in wanted]
        if is_new:
            for execution in found:
                if execution["level"] == 0:
                    self.admin.write("delete", f"/authentication/executions/{execution['id']}")
            self._add_steps(alias, steps)
            self.changes.tell(f"流れ「{alias}」の手順を作りました")
            found = self.admin.get(path)
        # From the last to the first, what a step needs before itself: a flow that is half-made lets nobody in.
        for execution, (_, step) in reversed(list(zip(found, wanted, strict=True))):
            where = f"流れ「{alias}」の {step.does}"
            config_id = execution.get("authenticationConfig")
            config = self.admin.get(f"/authentication/config/{config_id}") if config_id else {}
            if differing({"config": dict(step.config)}, config):
                body = {"alias": f"{alias} {execution['id']}", **config, "config": dict(step.config)}
                if config_id:
                    self.admin.write("put", f"/authentication/config/{config_id}", body)
                else:
                    self.admin.write("post", f"/authentication/executions/{execution['id']}/config", body)
                self._told(f"{where} の設定を直しました", is_new=is_new)
                # Sent back without it, the step would lose what it was just given.
                execution = next(e for e in self.admin.get(path) if e["id"] == execution["id"])
            if execution["requirement"] != step.requirement:
                self.admin.write("put", path, {**execution, "requirement": step.requirement})
                self._told(f"{where} を直しました", is_new=is_new)

    def _told(self, words: str, *, is_new: bool) -> None:
        """What a new flow is made of was told with it."""
        if not is_new:
            self.changes.tell(words)

    def _add_steps(self, alias: str, steps: tuple[FlowStep, ...]) -> None:
        """In order. Keycloak adds each switched off."""
        for step in steps:
            if step.steps:
                body = {"alias": step.does, "type": "basic-flow", "provider": "registration-page-form"}
                self.admin.write("post", f"{_executions(alias)}/flow", body)
                self._add_steps(step.does, step.steps)
            else:
                self.admin.write("post", f"{_executions(alias)}/execution", {"provider": step.does})

    # ── identity providers of towns ──────────────────────────────────────────────────────────────────────────────

    def provider(self, wanted: ProviderSpec, organization_id: str) -> None:
        """Nobody gets in by it before it can name only people of its own town: it is enabled last.

        Raises `InvalidInput` when Keycloak cannot read its source, or when it is new and comes without a secret.
        """
        path, where = f"/identity-provider/instances/{wanted.alias}", f"サインイン元 {wanted.alias}"
        read = {"providerId": wanted.kind, "fromUrl": wanted.source}
        imported = self.admin.ask("/identity-provider/import-config", read)
        if not imported:
            raise InvalidInput(
                f"Keycloakから {wanted.source} を読めないか、その中身が{wanted.kind.upper()}のものではありません。",
                field="source",
            )
        settings = wanted.settings(imported)
        digest = hashlib.sha256(wanted.client_secret.encode()).hexdigest() if wanted.client_secret else ""

        def decide(found: Json | None) -> Step | None:
            is_given = bool(digest)
            if wanted.kind == "oidc" and found is None and not is_given:
                raise InvalidInput("初めて加えるときは、クライアントの秘密の値も要ります。", field="secret")
            body = {**settings, "enabled": bool(found and found["enabled"]), "config": dict(settings["config"])}
            if is_given:
                body["config"] |= {"clientSecret": wanted.client_secret, "kumiai.secret": digest}
            if found is None:
                return f"{where} を作りました", lambda: self.admin.write("post", "/identity-provider/instances", body)
            shown = {k: v for k, v in body["config"].items() if k != "clientSecret"}
            changed = differing({**body, "config": shown}, found)
            if not changed:
                return None
            if not is_given and wanted.kind == "oidc":
                # What Keycloak shows in place of the secret it has, and takes for it.
                body["config"] |= {k: found["config"][k] for k in ("clientSecret", "kumiai.secret")}
            return f"{where} の {'、'.join(_names(changed))} を直しました", lambda: self.admin.write("put", path, body)

        self.bring(lambda: self.admin.get(path), decide)
        self.settle(lambda: self.mappers(f"{path}/mappers", wanted.mappers(), where))
        linked = f"/organizations/{organization_id}/identity-providers"

        def link(found: list[Json]) -> Step | None:
            if any(p["alias"] == wanted.alias for p in found):
                return None
            # A bare alias, not an object.
            return f"{where} を組織 {wanted.town} に結びました", lambda: self.admin.write("post", linked, wanted.alias)

        self.bring(lambda: self.admin.get(linked) or [], link)

        def enable(found: Json) -> Step | None:
            body = {**found, "enabled": True}
            return None if found["enabled"] else ("", lambda: self.admin.write("put", path, body))

        self.bring(lambda: self.admin.get(path), enable)

    def no_provider(self, alias: str) -> None:
        path = f"/identity-provider/instances/{alias}"

        def decide(found: Json | None) -> Step | None:
            if found is None:
                return None
            return f"サインイン元 {alias} を消しました", lambda: self.admin.write("delete", path)

        self.bring(lambda: self.admin.get(path), decide)

    # ── organizations ────────────────────────────────────────────────────────────────────────────────────────────

    def organization(self, wanted: OrganizationSpec, one_writer: OneWriter) -> str:
        """The organization's id, created or corrected; held against other writers while it is read and written."""

        def decide(found: Json | None) -> Step | None:
            if found is None:
                body = wanted.created()
                return f"組織 {wanted.alias} を作りました", lambda: self._create(wanted, body)
            changed = wanted.changed(found)
            if changed is None:
                return None
            what = "、".join(k for k in ("name", "enabled", "attributes") if changed[k] != found.get(k))
            return f"組織 {wanted.alias} の {what} を直しました", lambda: self.admin.write(
                "put", f"/organizations/{found['id']}", changed
            )

        with one_writer(wanted.alias):
            found = self.bring(lambda: find_organization(self.admin, wanted.alias), decide)
            found = found or find_organization(self.admin, wanted.alias)
        if found is None:
            raise KeycloakFailed(f"organization {wanted.alias}")
        return str(found["id"])

    # ── accounts ─────────────────────────────────────────────────────────────────────────────────────────────────

    def account(self, organization_id: str, username: str, password: str | None) -> tuple[str, bool]:
        """The account's `sub`, a member of the organization, and whether it is new; an existing one keeps its password."""
        made = ""

        def create(found: str | None) -> Step | None:
            if found is not None:
                return None
            body: Json = {"username": username, "enabled": True}
            if password is not None:
                body["credentials"] = [{"type": "password", "value": password, "temporary": True}]

            def post() -> None:
                nonlocal made
                made = self.admin.write("post", "/users", body)

            return "", post

        def find() -> str | None:
            rows = self.admin.get("/users", username=username, exact="true") or []
            return str(rows[0]["id"]) if rows else None

        sub = self.bring(find, create) or made
        if not sub:
            raise KeycloakFailed(f"user {username}")
        self.join(organization_id, sub, is_new=bool(made))
        return sub, bool(made)

    def join(self, organization_id: str, sub: str, *, is_new: bool = False) -> None:
        # A new account is in no organization yet: that is not asked, unless joining was unsure.
        nowhere: list[set[str]] = [set()] if is_new else []

        def towns() -> set[str]:
            return {o["id"] for o in self.admin.get(f"/organizations/members/{sub}/organizations") or []}

        def decide(found: set[str]) -> Step | None:
            if organization_id in found:
                return None
            # A bare id, not an object.
            return "", lambda: self.admin.write("post", f"/organizations/{organization_id}/members", sub)

        self.bring(lambda: nowhere.pop() if nowhere else towns(), decide)

    def set_password(self, sub: str, password: str, *, temporary: bool) -> None:
        body = {"type": "password", "value": password, "temporary": temporary}
        self.settle(lambda: self.admin.write("put", f"/users/{sub}/reset-password", body))

    def reset_password(self, sub: str, password: str, *, temporary: bool) -> None:
        self.set_password(sub, password, temporary=temporary)
        # Who was locked out for guessing may use the new one at once; who knew the old one is signed out.
        self.settle(lambda: self.admin.write("delete", f"/attack-detection/brute-force/users/{sub}"))
        self.sign_out(sub)

    def enable(self, sub: str, *, enabled: bool) -> None:
        def decide(found: Json | None) -> Step | None:
            if found is None:
                raise NotFound
            if found["enabled"] is enabled:
                return None
            return "", lambda: self.admin.write("put", f"/users/{sub}", {"enabled": enabled})

        self.bring(lambda: self.admin.get(f"/users/{sub}"), decide)

    def sign_out(self, sub: str) -> None:
        self.settle(lambda: self.admin.write("post", f"/users/{sub}/logout"))

    def accounts(self, alias: str, wanted: Sequence[AccountSpec]) -> None:
        organization_id = find_organization_id(self.admin, alias)
        if organization_id is None:
            return
        found = {m["username"]: m for m in self.admin.pages(f"/organizations/{organization_id}/members")}
        made = opened = closed = 0
        for person in wanted:
            now = found.get(f"{alias}.{person.login}")
            if now is None and not person.enabled:
                continue
            if now is None:
                sub, _ = self.account(organization_id, f"{alias}.{person.login}", None)
                made += 1
                self.changes.without_password += 1
            else:
                sub = now["id"]
            if now is not None and now["enabled"] is not person.enabled:
                self.enable(sub, enabled=person.enabled)
                if person.enabled:
                    opened += 1
                else:
                    closed += 1
                    self.sign_out(sub)
            self.changes.subs[alias, person.login] = sub
        for count, done in ((made, "作りました"), (opened, "開きました"), (closed, "閉じました")):
            if count:
                self.changes.tell(f"組織 {alias} のアカウント{count}件を{done}", writes=0)

    def _create(self, wanted: OrganizationSpec, body: Json) -> None:
        try:
            self.admin.write("post", "/organizations", body)
        except _Unsure:
            rows = self.admin.get("/organizations", search=wanted.name, exact="true") or []
            if any(row["name"] == wanted.name and row["alias"] != wanted.alias for row in rows):
                raise Conflict(f"Keycloakに「{wanted.name}」という別の組織があります。") from None
            raise


def find_organization_id(admin: Admin, alias: str) -> str | None:
    """By alias, which Keycloak cannot search for: by our attribute first, then through the whole list."""
    by_attribute = admin.pages("/organizations", q=f"{CODE_ATTRIBUTE}:{alias[1:]}")
    brief = chain(by_attribute, admin.pages("/organizations"))
    return next((str(o["id"]) for o in brief if o["alias"] == alias), None)


def find_organization(admin: Admin, alias: str) -> Json | None:
    """All of it; a list leaves out attributes."""
    organization_id = find_organization_id(admin, alias)
    found: Json | None = admin.get(f"/organizations/{organization_id}") if organization_id else None
    return found


def reconcile_realm(spec: RealmSpec) -> Changes:
    """Realm, key, profile, events, scope and clients as they must be.

    Raises `KeycloakProblem`, and `OtherIssuer` when the realm calls itself otherwise than we trust.
    """
    work = _Reconciler(Admin(spec.url, spec.realm, Administrator(spec.admin_user, spec.admin_password)))
    work.realm(spec)
    told = work.admin.issuer()
    if told != spec.issuer:
        raise OtherIssuer(
            f"Keycloakは {told}、KUMIAI_ISSUER は {spec.issuer} です。Keycloakの --hostname か KUMIAI_ISSUER を直してください。"
        )
    work.key()
    work.profile()
    work.events()
    work.no_password_grant()
    work.password_action()
    work.organization_scope()
    work.texts()
    work.ways_in()
    for client in (gateway_client(spec), portal_client(spec), directory_client(spec)):
        work.client(client)
    return work.changes


def reconcile_accounts(spec: RealmSpec, wanted: Sequence[AccountSpec]) -> Changes:
    """Accounts as our database says: missing ones are made without a password, nobody's membership is taken away.

    Left open because Keycloak was away when somebody was suspended, or lost with a realm: both are put right here.
    """
    work = _Reconciler(Admin(spec.url, spec.realm, Administrator(spec.admin_user, spec.admin_password)))
    for alias, group in groupby(sorted(wanted, key=lambda a: a.alias), key=lambda a: a.alias):
        work.accounts(alias, list(group))
    return work.changes


def reconcile_organizations(
    spec: RealmSpec, wanted: Sequence[OrganizationSpec], *, one_writer: OneWriter = alone
) -> Changes:
    """One organization per town. Those we do not know are left alone: accounts may hang on them.

    All are listed once; only what differs is read again, under its lock, and written.
    """
    work = _Reconciler(Admin(spec.url, spec.realm, Administrator(spec.admin_user, spec.admin_password)))
    found = {o["alias"]: o for o in work.admin.pages("/organizations", briefRepresentation="false")}
    for town in wanted:
        now = found.get(town.alias)
        if now is None or town.changed(now) is not None:
            work.changes.organization_ids[town.alias] = work.organization(town, one_writer)
        else:
            work.changes.organization_ids[town.alias] = str(now["id"])
    return work.changes


def reconcile_provider(spec: RealmSpec, wanted: ProviderSpec) -> Changes:
    """A town's own identity provider, linked to its organization. A second run changes nothing.

    Raises `InvalidInput`, and `KeycloakProblem` also when the town is not there yet.
    """
    work = _Reconciler(Admin(spec.url, spec.realm, Administrator(spec.admin_user, spec.admin_password)))
    organization_id = find_organization_id(work.admin, wanted.town)
    if organization_id is None:
        raise KeycloakFailed(f"Keycloakに組織 {wanted.town} がありません。kumiai keycloak up で作れます。")
    # In a realm of before, an e-mail would tell who somebody is.
    work.realm(spec)
    work.ways_in()
    work.provider(wanted, organization_id)
    return work.changes


def remove_provider(spec: RealmSpec, alias: str) -> Changes:
    """Nobody gets in by it any more; the accounts stay, and who has a password signs in by it."""
    work = _Reconciler(Admin(spec.url, spec.realm, Administrator(spec.admin_user, spec.admin_password)))
    work.no_provider(alias)
    return work.changes


def _executions(alias: str) -> str:
    return f"/authentication/flows/{quote(alias)}/executions"


def _flat(steps: tuple[FlowStep, ...], level: int = 0) -> Iterator[tuple[int, FlowStep]]:
    """As Keycloak lists them: a flow's steps behind it, one level below."""
    for step in steps:
        yield level, step
        yield from _flat(step.steps, level + 1)


def _shape(execution: Json) -> tuple[int, str]:
    return execution["level"], str(execution["displayName" if execution.get("authenticationFlow") else "providerId"])


class KeycloakDirectory:
    """Implements `tenants.identity.directory.IdentityDirectory` on Keycloak.

    Names of persons are not stored there: what is not there needs no erasing. The account is `<alias>.<login>`.
    """

    def __init__(
        self, url: str, realm: str, client: DirectoryClient, *, issuer: str, one_writer: OneWriter = alone
    ) -> None:
        self.issuer = issuer
        self._access = (url, realm, client)
        self._one_writer = one_writer
        self._own = threading.local()

    @property
    def _admin(self) -> Admin:
        """One connection per thread: the library renews its token without a lock."""
        admin: Admin | None = getattr(self._own, "admin", None)
        if admin is None:
            admin = self._own.admin = Admin(*self._access)
        return admin

    def ensure_organization(self, *, alias: str, name: str, code: str) -> str:
        return _Reconciler(self._admin).organization(OrganizationSpec(alias, name, code), self._one_writer)

    def ensure_user(self, *, alias: str, login: str, display_name: str, initial_password: str | None) -> str:
        sub, _ = _Reconciler(self._admin).account(self._organization(alias), f"{alias}.{login}", initial_password)
        return sub

    def open_account(self, *, alias: str, login: str, display_name: str, password: str, temporary: bool = True) -> str:
        work = _Reconciler(self._admin)
        # Without a password at first: set twice after a lost answer, it would be a repetition to refuse.
        sub, is_new = work.account(self._organization(alias), f"{alias}.{login}", None)
        if is_new:
            work.set_password(sub, password, temporary=temporary)
        else:
            work.enable(sub, enabled=True)
            work.reset_password(sub, password, temporary=temporary)
        return sub

    def reset_password(self, sub: str, password: str, *, temporary: bool = True) -> None:
        _Reconciler(self._admin).reset_password(sub, password, temporary=temporary)

    def set_user_enabled(self, sub: str, *, enabled: bool) -> None:
        _Reconciler(self._admin).enable(sub, enabled=enabled)

    def logout_user(self, sub: str) -> None:
        _Reconciler(self._admin).sign_out(sub)

    def remove_second_factors(self, sub: str) -> None:
        work = _Reconciler(self._admin)
        for credential in self._admin.get(f"/users/{sub}/credentials") or []:
            if credential["type"] in SECOND_FACTORS:
                path = f"/users/{sub}/credentials/{credential['id']}"
                work.settle(partial(self._admin.write, "delete", path))
        work.sign_out(sub)

    def set_organization_enabled(self, alias: str, *, enabled: bool) -> None:
        """Keycloak ends no session by itself: every member is signed out, also when this was cut off before."""
        path = f"/organizations/{self._organization(alias)}"
        with self._one_writer(alias):

            def decide(now: Json | None) -> Step | None:
                if now is None:
                    raise NotFound
                if now["enabled"] is enabled:
                    return None
                body = {**now, "enabled": enabled, "domains": now.get("domains") or []}
                return "", lambda: self._admin.write("put", path, body)

            _Reconciler(self._admin).bring(lambda: self._admin.get(path), decide)
        if not enabled:
            for member in list(self._admin.pages(f"{path}/members")):
                _Reconciler(self._admin).sign_out(member["id"])

    def join_organization(self, alias: str, sub: str) -> None:
        _Reconciler(self._admin).join(self._organization(alias), sub)

    def _organization(self, alias: str) -> str:
        """The organization's id."""
        found = find_organization_id(self._admin, alias)
        if found is None:
            raise KeycloakFailed(f"Keycloakに組織 {alias} がありません。kumiai keycloak up で作れます。")
        return found


def _names(changed: Json) -> list[str]:
    return sorted(k for key, value in changed.items() for k in (value if key in ("attributes", "config") else [key]))
