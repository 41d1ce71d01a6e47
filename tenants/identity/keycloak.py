"""Keycloak's administration: list, compare, write what differs. A second run writes nothing.

python-keycloak signs in and keeps the token fresh; every call goes through `_Admin`, because the library's own methods
change the query they are given, stop at 100 identity providers, retry a POST and take an id token for an access token.
What must hold is in `tenants.identity.realm`; why, in docs/adr.
"""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, Literal, TypeVar

from keycloak import KeycloakOpenIDConnection
from keycloak.exceptions import KeycloakConnectionError, KeycloakError

from observability.problems import Conflict, NotFound, Unavailable
from tenants.identity.one_writer import OneWriter, alone
from tenants.identity.realm import (
    CODE_ATTRIBUTE,
    ClientSpec,
    Json,
    OrganizationSpec,
    RealmSpec,
    differing,
    events_settings,
    gateway_client,
    organization_mapper,
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
    "reconcile_organizations",
    "reconcile_realm",
]

# The first list after a restart of a server with 1,741 organizations was seen to take 7 s.
TIMEOUT_S: Final = 60
PAGE: Final = 500
_TRIES: Final = 3

T = TypeVar("T")
# What is told of a write, and the write.
Step = tuple[str, Callable[[], object]]


class KeycloakUnavailable(Unavailable):
    type = "urn:problem:identity:keycloak-unavailable"
    title = "Keycloakにつながりません"


class KeycloakRefused(Unavailable):
    """Our own credentials or rights are wrong; nothing the person at the page can do."""

    type = "urn:problem:identity:keycloak-refused"
    title = "Keycloakの管理に入れません"


class KeycloakFailed(Unavailable):
    type = "urn:problem:identity:keycloak-failed"
    title = "Keycloakが処理できませんでした"


class _Unsure(Exception):
    """A write was answered 409 or 5xx, or not at all: only reading again tells what holds now."""


@dataclass(slots=True)
class Changes:
    """What was written, one line per write."""

    lines: list[str] = field(default_factory=list)
    organization_ids: dict[str, str] = field(default_factory=dict)

    @property
    def writes(self) -> int:
        return len(self.lines)


class _Admin:
    """One administrator's calls below /admin/realms/<realm>. Not shared between threads."""

    def __init__(self, url: str, realm: str, user: str, password: str) -> None:
        self._url = url
        self._base = f"admin/realms/{realm}"
        self._connection = KeycloakOpenIDConnection(
            server_url=url.rstrip("/") + "/",
            username=user,
            password=password,
            realm_name=realm,
            user_realm_name="master",
            timeout=TIMEOUT_S,
            max_retries=0,
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
                response = connection.raw_delete(url)
            else:
                send = connection.raw_post if verb == "post" else connection.raw_put
                response = send(url, data="" if body is None else json.dumps(body))
        except KeycloakConnectionError as error:
            raise KeycloakUnavailable(
                f"{self._url} が応えません。動いているか、KUMIAI_KEYCLOAK_URL が正しいかを確かめてください。"
            ) from error
        except KeycloakError as error:
            if error.response_code in (400, 401, 403):
                raise KeycloakRefused(
                    "KUMIAI_KEYCLOAK_ADMIN_USER と KUMIAI_KEYCLOAK_ADMIN_PASSWORD を確かめてください。"
                ) from error
            raise KeycloakUnavailable(
                f"{self._url} は Keycloak のようには応えません（{error.response_code}）。KUMIAI_KEYCLOAK_URL を確かめてください。"
            ) from error
        if response.status_code in (401, 403):
            raise KeycloakRefused(f"この管理者には権限がありません（{verb.upper()} {path}）。")
        return response


def _message(response: Any) -> str:
    try:
        told = response.json()
    except ValueError:
        return ""
    return str(told.get("errorMessage") or told.get("error_description") or told.get("error") or "")[:200]


class _Reconciler:
    """Reads, decides, writes; after an unsure write it reads again and decides anew."""

    def __init__(self, admin: _Admin) -> None:
        self.admin = admin
        self.changes = Changes()

    def bring(self, read: Callable[[], T], decide: Callable[[T], Step | None]) -> T:
        """Returns what was read last. Raises `KeycloakFailed` when it will not become as wanted."""
        unsure: _Unsure | None = None
        for _ in range(_TRIES):
            found = read()
            step = decide(found)
            if step is None:
                return found
            words, write = step
            try:
                write()
            except _Unsure as error:
                unsure = error
                continue
            self.changes.lines.append(words)
            return found
        raise KeycloakFailed(str(unsure)) from unsure

    # ── realm ────────────────────────────────────────────────────────────────────────────────────────────────────

    def realm(self, spec: RealmSpec) -> None:
        wanted = realm_settings(spec)

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
        self.mappers(path, (organization_mapper(),), "スコープ organization", by="protocolMapper")

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
            return words, lambda: self.admin.write("put", f"/clients/{found['id']}", {"clientId": client_id, **changed})

        self.bring(read, decide)
        found = read()
        if found is None:
            raise KeycloakFailed(f"client {client_id}")
        for kind, names in (("default", wanted.default_scopes), ("optional", wanted.optional_scopes)):
            self.scopes(f"/clients/{found['id']}/{kind}-client-scopes", names, client_id)
        self.mappers(f"/clients/{found['id']}/protocol-mappers/models", wanted.mappers, f"クライアント {client_id}")

    def scopes(self, path: str, wanted: frozenset[str], client_id: str) -> None:
        """Exactly these scopes; those that Keycloak gives every new client are taken away."""
        found = {s["name"]: s["id"] for s in self.admin.get(path) or []}
        known = {s["name"]: s["id"] for s in self.admin.get("/client-scopes") or []} if wanted - found.keys() else {}
        for name in sorted(wanted ^ found.keys()):
            verb: Literal["put", "delete"] = "put" if name in wanted else "delete"
            if verb == "put" and name not in known:
                raise KeycloakFailed(f"client scope {name}")
            self.admin.write(verb, f"{path}/{known[name] if verb == 'put' else found[name]}")
            words = "加えました" if verb == "put" else "外しました"
            self.changes.lines.append(f"クライアント {client_id} のスコープ {name} を{words}")

    def mappers(self, path: str, wanted: tuple[Json, ...], where: str, *, by: str = "name") -> None:
        """Exactly these mappers: one too many puts into tokens what nobody decided to put there."""
        found: dict[str, Json] = {}
        for mapper in self.admin.get(path) or []:
            if mapper[by] in {w[by] for w in wanted} - found.keys():
                found[mapper[by]] = mapper
            else:
                self.admin.write("delete", f"{path}/{mapper['id']}")
                self.changes.lines.append(f"{where} のマッパー {mapper['name']} を消しました")
        for mapper in wanted:
            now = found.get(mapper[by])
            if now is None:
                self.admin.write("post", path, mapper)
                self.changes.lines.append(f"{where} にマッパー {mapper['name']} を加えました")
            elif differing({"config": mapper["config"]}, now):
                body = {**now, "config": {**now["config"], **mapper["config"]}}
                self.admin.write("put", f"{path}/{now['id']}", body)
                self.changes.lines.append(f"{where} のマッパー {mapper['name']} を直しました")

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

    def _create(self, wanted: OrganizationSpec, body: Json) -> None:
        try:
            self.admin.write("post", "/organizations", body)
        except _Unsure:
            rows = self.admin.get("/organizations", search=wanted.name, exact="true") or []
            if any(row["name"] == wanted.name and row["alias"] != wanted.alias for row in rows):
                raise Conflict(f"Keycloakに「{wanted.name}」という別の組織があります。") from None
            raise


def find_organization(admin: _Admin, alias: str) -> Json | None:
    """By alias, which Keycloak cannot search for: by our attribute first, then through the whole list."""
    by_attribute = admin.pages("/organizations", q=f"{CODE_ATTRIBUTE}:{alias[1:]}")
    for brief in chain(by_attribute, admin.pages("/organizations")):
        if brief["alias"] == alias:
            found: Json | None = admin.get(f"/organizations/{brief['id']}")
            return found
    return None


def reconcile_realm(spec: RealmSpec) -> Changes:
    """Realm, key, profile, events, scope and clients as they must be. Raises `Unavailable` in several kinds."""
    work = _Reconciler(_Admin(spec.url, spec.realm, spec.admin_user, spec.admin_password))
    work.realm(spec)
    work.key()
    work.profile()
    work.events()
    work.no_password_grant()
    work.organization_scope()
    work.client(gateway_client(spec))
    work.client(portal_client(spec))
    return work.changes


def reconcile_organizations(
    spec: RealmSpec, wanted: Sequence[OrganizationSpec], *, one_writer: OneWriter = alone
) -> Changes:
    """One organization per town. Those we do not know are left alone: accounts may hang on them.

    All are listed once; only what differs is read again, under its lock, and written.
    """
    work = _Reconciler(_Admin(spec.url, spec.realm, spec.admin_user, spec.admin_password))
    found = {o["alias"]: o for o in work.admin.pages("/organizations", briefRepresentation="false")}
    for town in wanted:
        now = found.get(town.alias)
        if now is None or town.changed(now) is not None:
            work.changes.organization_ids[town.alias] = work.organization(town, one_writer)
        else:
            work.changes.organization_ids[town.alias] = str(now["id"])
    return work.changes


class KeycloakDirectory:
    """Implements `tenants.identity.directory.IdentityDirectory` on Keycloak.

    Names of persons are not stored there: what is not there needs no erasing. The account is `<alias>.<login>`.
    """

    def __init__(
        self, url: str, realm: str, user: str, password: str, *, issuer: str, one_writer: OneWriter = alone
    ) -> None:
        self.issuer = issuer
        self._access = (url, realm, user, password)
        self._one_writer = one_writer
        self._own = threading.local()

    @property
    def _admin(self) -> _Admin:
        """One connection per thread: the library renews its token without a lock."""
        admin: _Admin | None = getattr(self._own, "admin", None)
        if admin is None:
            admin = self._own.admin = _Admin(*self._access)
        return admin

    def ensure_organization(self, *, alias: str, name: str, code: str) -> str:
        return _Reconciler(self._admin).organization(OrganizationSpec(alias, name, code), self._one_writer)

    def ensure_user(self, *, alias: str, login: str, display_name: str, initial_password: str | None) -> str:
        work = _Reconciler(self._admin)
        organization = self._organization(alias)
        username = f"{alias}.{login}"
        body: Json = {"username": username, "enabled": True}
        if initial_password is not None:
            body["credentials"] = [{"type": "password", "value": initial_password, "temporary": True}]
        sub = self._find_user(username)
        if sub is None:
            work.bring(
                lambda: self._find_user(username),
                lambda found: None if found else ("", lambda: self._admin.write("post", "/users", body)),
            )
            sub = self._find_user(username)
        if sub is None:
            raise KeycloakFailed(f"user {username}")
        member_of = f"/organizations/members/{sub}/organizations"
        join = f"/organizations/{organization['id']}/members"
        work.bring(
            lambda: {o["id"] for o in self._admin.get(member_of) or []},
            lambda found: None if organization["id"] in found else ("", lambda: self._admin.write("post", join, sub)),
        )
        return sub

    def reset_password(self, sub: str, password: str, *, temporary: bool = True) -> None:
        body = {"type": "password", "value": password, "temporary": temporary}
        self._retry(lambda: self._admin.write("put", f"/users/{sub}/reset-password", body))
        # Who was locked out for guessing may use the new one at once; who knew the old one is signed out.
        self._retry(lambda: self._admin.write("delete", f"/attack-detection/brute-force/users/{sub}"))
        self.logout_user(sub)

    def set_user_enabled(self, sub: str, *, enabled: bool) -> None:
        def decide(found: Json | None) -> Step | None:
            if found is None:
                raise NotFound
            if found["enabled"] is enabled:
                return None
            return "", lambda: self._admin.write("put", f"/users/{sub}", {"enabled": enabled})

        _Reconciler(self._admin).bring(lambda: self._admin.get(f"/users/{sub}"), decide)

    def logout_user(self, sub: str) -> None:
        self._retry(lambda: self._admin.write("post", f"/users/{sub}/logout"))

    def set_organization_enabled(self, alias: str, *, enabled: bool) -> None:
        """Keycloak ends no session by itself: every member is signed out, also when this was cut off before."""
        found = self._organization(alias)
        path = f"/organizations/{found['id']}"
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
                self.logout_user(member["id"])

    def _organization(self, alias: str) -> Json:
        found = find_organization(self._admin, alias)
        if found is None:
            raise NotFound(f"Keycloakに組織 {alias} がありません。kumiai keycloak up で作れます。")
        return found

    def _find_user(self, username: str) -> str | None:
        rows = self._admin.get("/users", username=username, exact="true") or []
        return str(rows[0]["id"]) if rows else None

    def _retry(self, write: Callable[[], object]) -> None:
        """For writes that may be done twice without harm."""
        for attempt in range(_TRIES):
            try:
                write()
            except _Unsure as error:
                if attempt == _TRIES - 1:
                    raise KeycloakFailed(str(error)) from error
            else:
                return


def _names(changed: Json) -> list[str]:
    return sorted(k for key, value in changed.items() for k in (value if key in ("attributes", "config") else [key]))
