"""Rare words written wherever a clerk can write, then looked for wherever bytes come to rest."""

import base64
import contextlib
import ctypes
import html
import io
import json
import os
import re
import sqlite3
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psycopg
import pytest
import yaml

from gateway.reading import speech
from gateway.server.providers.catalogue import load_catalogue
from kumiai.local.postgres import Postgres
from loadtests.upstream import RunningUpstream, running_upstream
from tenants.db import DatabaseUrls
from tests.demo_process import Browser, DemoProcess
from tests.gateways import eventually
from tests.servers import not_available
from tests.voices import silence

_UUID = r"[0-9a-f]{8}-[0-9a-f-]{27}"
# Each place has a word of its own, so that a find says where it came from.
PLACES = (
    "question", "edited", "file", "file_name", "title", "folder", "prompt_title", "prompt", "report",
    "search", "api", "api_streamed", "api_malformed", "api_embedded", "api_inspected", "api_masked",
    "api_responses", "api_messages", "api_counted", "api_ranked", "too_long", "hold", "api_completed", "api_kept",
    "api_resumed", "api_heard", "api_drawn", "api_unheard", "api_undrawn",
)  # fmt: skip
# Asked for, but refused or answered without being kept.
NOT_KEPT = frozenset(
    {
        "search",
        "api",
        "api_streamed",
        "api_malformed",
        "api_embedded",
        "api_inspected",
        "api_masked",
        "api_responses",
        "api_messages",
        "api_counted",
        "api_ranked",
        "too_long",
        "api_completed",
        "api_heard",
        "api_drawn",
        "api_unheard",
        "api_undrawn",
    }
)
# Kept sealed for some minutes for the caller, and part of nothing that the town takes along.
SHORT_LIVED = frozenset({"api_kept", "api_resumed"})
# Larger than what a form parser holds before it goes to the disk.
PADDING = "余白" * 400_000


# Models of a server of the house; the sample writes only.
DRAWS, HEARS = "draws", "hears"

# What all words end with: a file without it has none of them.
MARK = "鶴亀鶴ZQX7391"


def word(place: str) -> str:
    return f"暗号{place.replace('_', '')}{MARK}"


def spellings(text: str) -> set[bytes]:
    """How a text may stand in a file: in the encodings used here, escaped in JSON, in base64 at any offset."""
    found = {text.encode(e) for e in ("utf-8", "cp932", "utf-16-le", "utf-16-be", "unicode_escape")}
    found.add("".join(f"\\u{ord(c):04x}" if ord(c) > 127 else c for c in text).encode())
    found.add(httpx.QueryParams({"q": text}).__str__().removeprefix("q=").encode())
    for shift in range(3):
        coded = base64.b64encode(b"x" * shift + text.encode())
        found |= {coded[4:-4], coded[4:-4].replace(b"+", b"-").replace(b"/", b"_")}
    return found


MARKS = spellings(MARK)
SPELLINGS = {place: spellings(word(place)) for place in PLACES}


def found_in(name: str, data: bytes) -> list[tuple[str, str]]:
    if not any(mark in data for mark in MARKS):
        return []
    return [(place, name) for place, ways in SPELLINGS.items() if any(way in data for way in ways)]


def found_below(folder: Path) -> list[tuple[str, str]]:
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    assert files
    return [hit for path in files for hit in found_in(str(path.relative_to(folder)), path.read_bytes())]


class TemporaryFiles:
    """The names of all files that come into being in a folder, also those that are gone at once."""

    _CREATED = 0x100
    _MOVED_IN = 0x80

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor: int = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._descriptor, str(folder).encode(), self._CREATED | self._MOVED_IN) > 0

    def names(self) -> list[str]:
        found = []
        try:
            while data := os.read(self._descriptor, 65_536):
                while data:
                    length = int.from_bytes(data[12:16], "little")
                    found.append(data[16 : 16 + length].rstrip(b"\0").decode())
                    data = data[16 + length :]
        except BlockingIOError:
            pass
        return found

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass
class Written:
    """A demo in which all the words were written, and what of it could be seen meanwhile."""

    demo: DemoProcess
    temporary: Path
    temporary_names: list[str]
    read_back: dict[str, bool] = field(default_factory=dict)
    exported: set[str] = field(default_factory=set)
    seen_by_operator: str = ""
    metrics: str = ""
    server: Postgres | None = None
    urls: DatabaseUrls | None = None


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern} in {text[:1000]}"
    return found[1]


def _chat(clerk: Browser) -> dict[str, bool]:
    """Writes as a clerk does; place → whether the clerk reads it back."""
    sheet = f"名前,数\n{word('file')},3\n水,1\n"
    answer = clerk.post(
        "/apps/chat/files",
        files={"file": (f"{word('file_name')}.csv", sheet.encode("cp932"))},
        headers={"origin": clerk.origin, "kumiai-csrf": clerk.csrf},
    )
    file_id = _first(rf"/apps/chat/files/({_UUID})", answer.text)
    # Too long to be read with a question, but it has to be received first.
    clerk.post(
        "/apps/chat/files",
        files={"file": (f"{word('file_name')}.txt", (word("file") + PADDING).encode("cp932"))},
        headers={"origin": clerk.origin, "kumiai-csrf": clerk.csrf},
    )
    sent = clerk.submit(
        "/apps/chat/send",
        {"text": word("question"), "file_ids": file_id, "folder": word("folder"), "data_class": "1"},
    )
    assert sent.status_code == 303, sent.text[:500]
    conversation = _first(rf"(/apps/chat/c/{_UUID})", sent.headers["location"])
    page = clerk.get(conversation).text
    assert word("question") in page
    question = _first(rf'id="m-({_UUID})"', page)
    again = clerk.submit(f"{conversation}/again", {"question": question, "text": word("edited")})
    assert again.status_code == 303
    counted = clerk.submit(
        "/apps/chat/send", {"text": "名前別の数の合計", "conversation": conversation.rsplit("/", 1)[1]}
    )
    assert counted.status_code == 303
    assert clerk.submit(f"{conversation}/rename", {"title": word("title")}).status_code == 303
    assert (
        clerk.submit("/apps/chat/prompts", {"title": word("prompt_title"), "text": word("prompt")}).status_code == 303
    )
    told = {
        "kind": "wrong_answer",
        "with_content": "1",
        "content": word("report"),
        "page_path": f"/apps/chat?q={word('search')}",
    }
    assert clerk.submit("/report", told).status_code == 303
    assert clerk.get("/apps/chat/history", params={"q": word("search")}).status_code == 200
    assert clerk.submit("/apps/chat/send", {"text": word("too_long") * 3_000}).status_code == 422
    page = clerk.get(conversation).text
    for kind in ("docx", "xlsx"):
        checks = clerk.get(f"{conversation}/export", params={"kind": kind}).text
        checked = [html.unescape(c) for c in re.findall(r'name="checked" value="([^"]*)"', checks)]
        exported = clerk.submit(f"{conversation}/export", {"checked": checked, "kind": kind})
        assert exported.headers["content-type"].startswith("application/vnd"), exported.text[:300]
    history = clerk.get("/apps/chat/history", params={"q": word("edited")}).text
    prompts = clerk.get("/apps/chat/prompts").text
    return {
        "question": True,
        "edited": word("edited") in page,
        "title": word("title") in page,
        "folder": word("folder") in history or word("folder") in clerk.get("/apps/chat/history").text,
        "file": word("file") in clerk.get(f"/apps/chat/files/{file_id}").text,
        "file_name": word("file_name") in page + clerk.get(f"/apps/chat/files/{file_id}").text,
        "prompt_title": word("prompt_title") in prompts,
        "prompt": word("prompt") in prompts
        or word("prompt") in clerk.get("/apps/chat", params={"prompt": _first(rf"/prompts/({_UUID})", prompts)}).text,
    }


def _streamed(text: str) -> str:
    parts = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]
    return "".join(c["delta"].get("content") or "" for part in parts for c in part["choices"])


def _take_along(demo: DemoProcess, admin: Browser) -> set[str]:
    """The operator exports the town; its administrator receives it. Returns which words are in it."""
    with demo.signed_in("operator") as operator:
        towns = operator.get("/console/operator/towns", params={"q": demo.towns[0]}).text
        town_id = _first(rf"/console/operator/towns/({_UUID})", towns)
        assert operator.submit(f"/console/operator/towns/{town_id}/export").status_code == 200
    path = eventually(lambda: re.search(r"/desk/export/[0-9a-f]{64}", admin.get("/desk/export").text), within_s=120)
    assert path is not None
    with zipfile.ZipFile(io.BytesIO(admin.get(path[0]).content)) as archive:
        members = b"\n".join(info.filename.encode() + archive.read(info) for info in archive.infolist())
    # A conversation is JSON in it, and a clerk's sheet stands as it was attached.
    return {place for place, _ in found_in("export", members)}


def _call_api(demo: DemoProcess) -> dict[str, bool]:
    """Writes as a system does; place → whether the system gets it again, where answers are kept for it."""
    read_back = {}
    key = {"authorization": f"Bearer {demo.api_key()}"}
    with httpx.Client(base_url=demo.base_url, headers=key, timeout=60, trust_env=False) as client:
        for place, extra in (("api", {}), ("api_streamed", {"stream": True})):
            body = {"model": "standard", "messages": [{"role": "user", "content": word(place)}], **extra}
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
        malformed = f'{{"model": "standard", "messages": [{{"role": "user", "content": "{word("api_malformed")}"'
        assert client.post("/v1/chat/completions", content=malformed.encode()).status_code == 400
        assert client.post(
            "/v1/chat/completions", json={"model": word("api_malformed"), "messages": []}
        ).status_code in (400, 404)
        client.post("/v1/embeddings", json={"model": "embedding", "input": word("api_embedded")})
        said: dict[str, object] = {
            "messages": [{"role": "user", "content": word("api_messages")}],
            "max_tokens": 16,
        }
        others: dict[str, dict[str, object]] = {
            "/v1/responses": {"input": word("api_responses"), "metadata": {"place": word("api_responses")}},
            "/v1/messages": said,
            "/v1/messages/count_tokens": said | {"system": word("api_counted")},
            "/v1/rerank": {"model": "rerank", "query": "水", "documents": ["町", word("api_ranked")]},
            "/v2/rerank": {"model": "rerank", "query": "水", "documents": ["町", word("api_ranked")]},
        }
        for path, body in others.items():
            answer = client.post(path, json={"model": "standard"} | body)
            assert answer.status_code == 200, answer.text
        inspected = client.post("/v1/guard/inspect", json={"text": f"{word('api_inspected')} 090-1234-5678"})
        assert "phone" in {f["kind"] for f in inspected.json()["findings"]}
        masked = {"model": "standard", "messages": [{"role": "user", "content": f"{word('api_masked')} 090-1234-5678"}]}
        assert client.post("/v1/chat/completions", json=masked, headers={"kumiai-mask": "1"}).status_code == 200
        completed = client.post("/v1/completions", json={"model": "standard", "prompt": word("api_completed")})
        assert completed.status_code == 200, completed.text
        body = {"model": "standard", "messages": [{"role": "user", "content": f"次を要約：{word('api_kept')}"}]}
        kept = [client.post("/v1/chat/completions", json=body, headers={"idempotency-key": "canary"}) for _ in range(2)]
        assert kept[1].headers["idempotency-replayed"] == "true", kept[1].headers
        read_back["api_kept"] = word("api_kept") in kept[1].text
        body = {
            "model": "standard", "messages": [{"role": "user", "content": f"次を要約：{word('api_resumed')}"}], "stream": True,
        }  # fmt: skip
        first = client.post("/v1/chat/completions", json=body, headers={"kumiai-resumable": "1"})
        again = client.get(f"/v1/streams/{first.headers['kumiai-call-id']}")
        read_back["api_resumed"] = word("api_resumed") in _streamed(again.text)
        for place, model, status in (("api_drawn", DRAWS, 200), ("api_undrawn", "standard", 400)):
            drawn = client.post("/v1/images/generations", json={"model": model, "prompt": word(place)})
            assert drawn.status_code == status, drawn.text
        # What writes cannot hear, and what is no recording is not heard by what could.
        sounds = (("api_heard", HEARS, silence(2), 200), ("api_unheard", HEARS, word("api_unheard").encode(), 400),
                  ("api_unheard", "standard", silence(1), 400))  # fmt: skip
        for place, model, sound, status in sounds:
            heard = client.post(
                "/v1/audio/transcriptions",
                data={"model": model, "prompt": word(place)},
                files={"file": (f"{word(place)}.wav", sound, "audio/wav")},
            )
            assert heard.status_code == status, heard.text
    return read_back


@contextlib.contextmanager
def _house(file: Path) -> Iterator[RunningUpstream]:
    """A server of the house that draws and hears, and the file in which an operator declares it."""
    [shipped] = [e for e in load_catalogue() if e.id == "sakura/multilingual-e5-large"]
    priced = {"currency": "JPY", "source": "見本の単価", "checked": "2026-11-24"}
    with running_upstream() as upstream:
        common = shipped.model_dump(mode="json") | {
            "base_url": f"{upstream.url}/v1", "key_from": "", "needs": [], "zone": "onprem", "owner": "shared",
        }  # fmt: skip
        draws = common | {
            "id": "house/draws", "aliases": [DRAWS], "model": "fake-image", "operations": ["images/generations"],
            "image_tokens": {"*/*": 4_000}, "extra": {"told_data": "1"}, "price": priced | {"input_u_per_mtok": 1, "output_u_per_mtok": 1},
        }  # fmt: skip
        hears = common | {
            "id": "house/hears", "aliases": [HEARS], "model": "fake-transcription",
            "operations": ["audio/transcriptions"], "price": priced | {"audio_u_per_minute": 1},
        }  # fmt: skip
        file.write_text(yaml.safe_dump({"deployments": [draws, hears]}), "utf-8")
        yield upstream


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    folder = tmp_path_factory.mktemp("canary")
    temporary = folder / "tmp"
    temporary.mkdir()
    environment = {"TMPDIR": str(temporary)}
    server = urls = None
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        urls = request.getfixturevalue("modules_postgres")
        names = {"": urls.app, "PLATFORM_": urls.platform, "LEDGER_": urls.ledger, "CONTENT_": urls.content,
                 "OWNER_": urls.owner}  # fmt: skip
        environment |= {f"KUMIAI_{name}DATABASE_URL": url for name, url in names.items()}
    if not speech.is_available():
        not_available("faster-whisper not installed: requirements/install.sh speech")
    watch = TemporaryFiles(temporary)
    # What cannot be heard here goes to a listener of the house all the same.
    environment |= {"KUMIAI_CATALOGUE_FILE": str(folder / "house.yaml"), "KUMIAI_GATEWAY_SPEECH": "off"}
    with _house(folder / "house.yaml") as upstream, DemoProcess(folder / "home", environment=environment) as demo:
        result = Written(demo, temporary, [], server=server, urls=urls)
        with demo.signed_in("staff") as clerk:
            result.read_back = _chat(clerk)
        with demo.signed_in("town_admin") as admin:
            report = _first(rf"(/desk/reports/{_UUID})", admin.get("/desk/reports").text)
            result.read_back["report"] = word("report") in admin.get(report).text
            held = {"app": "chat", "login": "1002", "reason": word("hold")}
            assert admin.submit("/desk/retention/holds", held).status_code == 303
            result.read_back["hold"] = word("hold") in admin.get("/desk/retention").text
            result.exported = _take_along(demo, admin)
        result.read_back |= _call_api(demo)
        [drawn, heard] = upstream.seen()["requests"]
        assert word("api_drawn") == drawn["body"]["prompt"]
        # The form is told byte by byte.
        assert word("api_heard").encode() in heard["body"].encode("latin-1")
        with demo.signed_in("operator") as operator:
            pages = [operator.get("/console/operator").text]
            for path in set(re.findall(r'href="(/console/operator/[^"#?]*)"', pages[0])):
                pages.append(operator.get(path).text)
            result.seen_by_operator = "\n".join(pages)
        result.metrics = httpx.get(f"{demo.base_url}/metrics", trust_env=False).text
        result.temporary_names = watch.names()
        yield result
    watch.close()


def test_what_was_written_can_be_read_by_its_people(written: Written) -> None:
    assert {place for place, seen in written.read_back.items() if seen} == set(PLACES) - NOT_KEPT


def test_what_the_town_takes_along_holds_every_word_that_is_kept(written: Written) -> None:
    assert written.exported == set(PLACES) - NOT_KEPT - SHORT_LIVED


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    for place in PLACES:
        text = word(place)
        for number, data in enumerate(
            (
                text.encode(),
                text.encode("cp932"),
                text.encode("utf-16-le"),
                base64.b64encode(b"ab" + text.encode() + b"c"),
            )
        ):
            (tmp_path / f"{place}{number}").write_bytes(b"\0" * 10 + data + b"\0" * 10)
    assert len(found_below(tmp_path)) == len(PLACES) * 4


def test_no_file_of_the_installation_holds_a_word(written: Written) -> None:
    names = {p.name for p in written.demo.home.rglob("*") if p.is_file()}
    assert {"gateway.log", "portal.log", "demo.log"} <= names
    if written.server is None:
        assert {"kumiai.sqlite3", "kumiai-content.sqlite3"} <= names
        assert any(name.startswith("kumiai-content.sqlite3-wal") for name in names)
    assert any(p.is_file() for p in (written.demo.home / "blobs").rglob("*"))
    # The whole town in one file, as it waits to be fetched; in a ZIP the search would see nothing, for it is compressed.
    waiting = list((written.demo.home / "exports").glob("*.sealed"))
    assert [p.stat().st_mode & 0o777 for p in waiting] == [0o600]
    assert [p for p in written.demo.home.rglob("*") if p.is_file() and zipfile.is_zipfile(p)] == []
    assert found_below(written.demo.home) == []
    assert found_in("output", written.demo.output.read_bytes()) == []


def test_no_temporary_file_was_made(written: Written) -> None:
    # Python tries once whether a folder takes files, by one of eight letters; names of files with content are longer.
    assert [name for name in written.temporary_names if len(name) != 8] == []
    assert list(written.temporary.iterdir()) == []


def test_metrics_and_the_operators_pages_hold_no_word(written: Written) -> None:
    assert "kumiai_" in written.metrics
    assert found_in("metrics", written.metrics.encode()) == []
    assert "見本町" in written.seen_by_operator
    assert found_in("operator", written.seen_by_operator.encode()) == []


def _dump(written: Written) -> bytes:
    """All rows as text, as an administrator would write them out."""
    if written.server is None or written.urls is None:
        files = [written.demo.home / name for name in ("kumiai.sqlite3", "kumiai-content.sqlite3")]
        with contextlib.ExitStack() as opened:
            found = [opened.enter_context(contextlib.closing(sqlite3.connect(f))) for f in files]
            return "\n".join(line for file in found for line in file.iterdump()).encode()
    program = written.server.program("pg_dump")
    return subprocess.run([program, "--dbname", _url(written)], capture_output=True, check=True, timeout=60).stdout


def _url(written: Written) -> str:
    assert written.server is not None
    assert written.urls is not None
    return written.server.superuser_url.rsplit("/", 1)[0] + "/" + written.urls.app.rsplit("/", 1)[1]


def test_a_dump_of_the_database_holds_no_word(written: Written) -> None:
    dump = _dump(written)
    assert re.search(rb'COPY content.document |INSERT INTO "document"', dump)
    # Sealed values are printed in hexadecimal: what stands in them would have to be looked for so.
    sealed = re.findall(rb"\\\\x((?:[0-9a-f]{2}){20,})|X'((?:[0-9A-Fa-f]{2}){20,})'", dump)
    opened = b"\n".join(bytes.fromhex((a or b).decode()) for a, b in sealed)
    assert len(sealed) > 10
    assert found_in("dump", dump + opened) == []
    # A stream kept for a reader who may come back cuts words to pieces: no part of it may be in clear.
    assert re.search(rb'COPY content.stream_part .*;\n[^\\]|INSERT INTO "stream_part"', dump)
    assert b"chat.completion.chunk" not in dump + opened


def test_the_operators_own_login_dumps_no_content(written: Written) -> None:
    """The one with which pages and commands of the operator work; a backup needs the owner's, and is sealed."""
    if written.server is None or written.urls is None:
        return
    words = [written.server.program("pg_dump"), "--dbname", written.urls.platform.replace("+psycopg", "")]
    refused = subprocess.run([*words, "--schema", "content"], capture_output=True, check=False, timeout=60)
    assert refused.returncode != 0
    assert b"permission denied" in refused.stderr
    assert b"COPY" not in refused.stdout
    # What it may read it can write out.
    table = subprocess.run([*words, "--table", "public.price"], capture_output=True, check=False, timeout=60)
    assert b"COPY public.price" in table.stdout


def test_no_process_may_write_its_memory_to_a_file(written: Written) -> None:
    """Not by a crash: the limit of each is nothing, and cannot be raised by itself."""
    families: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            parent = int(_first(r"PPid:\s+(\d+)", status.read_text()))
            families.setdefault(parent, []).append(int(status.parent.name))
    processes = [written.demo.pid]
    for one in processes:
        processes += families.get(one, [])
    limits = [Path(f"/proc/{one}/limits").read_text() for one in processes]
    assert len(limits) > 1
    assert all(re.search(r"Max core file size\s+0\s+0\s", limit) for limit in limits)


def test_the_databases_own_files_hold_no_word(written: Written) -> None:
    """Tables, indexes, write-ahead log and the server's log, with everything written back."""
    if written.server is None:
        for name in ("kumiai", "kumiai-content"):
            with written.demo.database(name) as file:
                file.execute("pragma wal_checkpoint(passive)")
        assert found_below(written.demo.home) == []
        return
    with psycopg.connect(_url(written), autocommit=True) as connection:
        connection.execute("checkpoint")
    assert (written.server.folder / "data" / "pg_wal").is_dir()
    assert found_below(written.server.folder) == []
