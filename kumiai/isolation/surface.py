"""Every address of the product, as portal and gateway describe themselves, and what each of its parameters stands for."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from apps.host.main import create_portal
from gateway.server.main import create_gateway
from tenants.context import Role, new_id
from tenants.settings import Settings

# What a parameter or a field names, by its name. A new one that names an object belongs here, and the object into
# `kumiai.isolation.stage`; one that names nothing belongs into PLAIN.
REFERENCES: Final[Mapping[str, str]] = {
    "conversation_id": "conversation", "conversation": "conversation",
    "message_id": "message", "question": "message", "answer": "message", "after": "message", "edit": "message",
    "file_id": "file", "file_ids": "file", "ids": "file", "photos": "file",
    "prompt_id": "prompt", "prompt": "prompt",
    "report_id": "report", "notice_id": "notice", "glass_id": "glass", "sha256": "export", "chain": "chain", "hold_id": "hold",
    "person_id": "person", "person": "person", "section_id": "section", "section": "section", "key_id": "key",
    "call_id": "stream", "town_id": "town", "from": "town", "to": "town",
    "move_id": "move",
}  # fmt: skip
# Words, choices and numbers: they lead to nobody's things. What is written there when a value is wanted.
PLAIN: Final[Mapping[str, str]] = {
    "act": "check", "admin_login": "", "admin_name": "", "alias": "standard", "allow": "", "app": "chat", "app_on": "chat",
    "by": "", "card_id": "", "checked": "", "code": "000000", "confirmed": "1", "contract": "", "content": "中身",
    "data_class": "1", "days": "30", "default_class": "1", "display_name": "職員", "error": "", "folder": "束",
    "granted": "1", "handed_over": "", "iss": "", "kc_action_status": "", "kind": "docx", "label": "鍵",
    "login": "7001", "masking": "", "minutes": "30", "model": "standard", "month": "", "month_yen": "1", "day_yen": "1", "fiscal_year_yen": "1",
    "name": "名前", "names_too": "", "find_names": "", "next": "/", "node": "app:chat", "ng_words": "", "note": "", "number": "", "page": "1",
    "page_path": "/", "password": "aaaa-2222-bbbb", "pinned": "1", "pool_yen": "1", "preset": "standard", "demanded": "1", "register": "code", "since": "2031-04-01", "vouched": "",
    "public": "", "q": "水", "reason": "", "remove_absent": "", "role": "staff", "scope": "chat", "sections": "総務課",
    "send_key": "enter", "sort": "", "state": "open", "suggest": "", "take_back": "", "text": "水", "then": "", "title": "題", "told": "",
    "town": "", "typed_name": "違う名前", "version": "0", "via": "", "way": "", "when_found": "", "why": "", "window": "month",
    "shared_after_own": "", "with_content": "", "wordings": "", "yen": "1", "packed": "[]", "file": "",
    "until": "once", "wish": "", "start": "", "before": "",
}  # fmt: skip
# The bodies of the API's addresses, without which nothing would be asked.
BODIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "/v1/chat/completions": {
        "model": "standard", "messages": [{"role": "user", "content": "水"}], "max_tokens": 16,
    },
    "/v1/completions": {"model": "standard", "prompt": "水", "max_tokens": 16},
    "/v1/embeddings": {"model": "embedding", "input": "水"},
    "/v1/rerank": {"model": "rerank", "query": "水", "documents": ["水", "火"]},
    "/v2/rerank": {"model": "rerank", "query": "水", "documents": ["水", "火"]},
    "/v1/messages": {"model": "standard", "messages": [{"role": "user", "content": "水"}], "max_tokens": 16},
    "/v1/messages/count_tokens": {"model": "standard", "messages": [{"role": "user", "content": "水"}]},
    "/v1/responses": {"model": "standard", "input": "水", "max_output_tokens": 16},
    # A form: this body is refused when who asks was let in.
    "/v1/audio/transcriptions": {},
    # The sample draws nothing: refused likewise.
    "/v1/images/generations": {"model": "standard", "prompt": "水"},
    "/v1/guard/inspect": {"text": "水"},
    "/v1/streams/{call_id}": {},
}  # fmt: skip

# Readable by everybody, and nothing else is: the way in, what the law wants shown, and what machines ask.
PUBLIC: Final = frozenset({
    ("GET", "/"), ("GET", "/t/{town}"), ("GET", "/auth/signin"), ("GET", "/auth/callback"), ("GET", "/about/{name}"),
    ("GET", "/portal/ready"),
    # The issuer asks there whether to sign out; until then nothing has happened.
    ("GET", "/auth/signout-other"),
    ("GET", "/health/live"), ("GET", "/health/ready"), ("GET", "/metrics"),
})  # fmt: skip
# The issuer calls it without a browser; a signed token stands in for cookie and origin.
BY_TOKEN: Final = frozenset({("POST", "/auth/backchannel-logout")})
# Whose the offices are; nobody's: without a town's approval it is there for nobody.
OFFICES: Final[Mapping[str, frozenset[Role]]] = {
    "/console/town": frozenset({Role.TOWN_ADMIN}), "/desk": frozenset({Role.TOWN_ADMIN}),
    "/console/audit": frozenset({Role.TOWN_ADMIN, Role.AUDITOR}), "/console/operator": frozenset({Role.OPERATOR}),
    "/break-glass": frozenset(),
}  # fmt: skip
UNSAFE: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True, slots=True)
class Parameter:
    """One value an address takes. `is_file`: an upload."""

    name: str
    place: Literal["path", "query", "form"]
    is_file: bool = False

    @property
    def refers_to(self) -> str:
        """The kind of object; empty for none."""
        return REFERENCES.get(self.name, "")


@dataclass(frozen=True, slots=True)
class Address:
    """A method and a path of portal or gateway."""

    server: Literal["portal", "gateway"]
    method: str
    path: str
    parameters: tuple[Parameter, ...] = ()
    is_multipart: bool = False

    def url(self, **given: str) -> str:
        """The path with its parameters filled: as given, else with ids that nobody has."""
        return re.sub(r"\{(\w+)(?::\w+)?\}", lambda found: given.get(found[1], str(new_id())), self.path)

    def among(self, place: str) -> Iterator[Parameter]:
        return (p for p in self.parameters if p.place == place)

    @property
    def office(self) -> str:
        """The office it belongs to; empty outside."""
        return next((o for o in OFFICES if self.path == o or self.path.startswith(f"{o}/")), "")

    @property
    def is_public(self) -> bool:
        return (self.method, self.path) in PUBLIC

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def find_addresses(folder: Path) -> list[Address]:
    """All of them, sorted; what ends something comes last. folder: an empty one, for keys that nobody uses."""
    settings = Settings(env="test", home=folder)
    portal = create_portal(settings)
    portal.openapi_url = "/described"
    described = portal.openapi()
    schemas = described.get("components", {}).get("schemas", {})
    found = [
        _described("portal", method, path, facts, schemas)
        for path, methods in described["paths"].items()
        for method, facts in methods.items()
    ]
    found += [
        _described("gateway", method, path, facts, {})
        for path, methods in create_gateway(settings).description().items()
        for method, facts in methods.items()
    ]
    return sorted(found, key=lambda a: (_ends(a), a.server, a.path, a.method))


_ENDING: Final = re.compile(
    r"/(delete|close|end|revoke|rotate|suspend|erase|reset|role|policy|import|choose|move|release)$"
)


def _ends(address: Address) -> bool:
    """Whether it takes away what other addresses are tried with."""
    return address.method == "DELETE" or bool(_ENDING.search(address.path))


def _described(
    server: Literal["portal", "gateway"],
    method: str,
    path: str,
    facts: Mapping[str, Any],
    schemas: Mapping[str, Any],
) -> Address:
    parameters = [Parameter(p["name"], p["in"]) for p in facts.get("parameters", ()) if p["in"] in ("path", "query")]
    # A hot address tells its name only.
    told = {p.name for p in parameters}
    parameters += [Parameter(n, "path") for n in re.findall(r"\{(\w+)(?::\w+)?\}", path) if n not in told]
    content = facts.get("requestBody", {}).get("content", {})
    multipart = "multipart/form-data" in content
    for kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        if kind in content:
            schema = content[kind]["schema"]
            fields = schemas.get(schema.get("$ref", "").rpartition("/")[2], schema).get("properties", {})
            parameters += [Parameter(n, "form", "octet-stream" in str(f)) for n, f in fields.items()]
    return Address(server, method.upper(), path, tuple(parameters), multipart)


def uncovered(addresses: Sequence[Address]) -> list[str]:
    """What nobody has said how to try, as sentences that say what to add where. Empty: all is covered."""
    here = "kumiai/isolation/surface.py"
    found = [
        f"{address}: the parameter {p.name!r} is neither in REFERENCES nor in PLAIN of {here}"
        for address in addresses
        for p in address.parameters
        if p.name not in REFERENCES and p.name not in PLAIN
    ]
    found += [
        f"{address}: there is no body for it in BODIES of {here}"
        for address in addresses
        if address.server == "gateway" and address.method in UNSAFE and address.path not in BODIES
    ]
    return found
