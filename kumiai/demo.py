"""`kumiai demo`: everything on one address with embedded defaults, seeded with one operator and three towns.

The same code paths as in a cluster, in three processes: this one with the front and the worker, gateway and portal.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from pydantic import SecretStr

from kumiai.forking import Child, fork
from kumiai.loading import load_parts
from kumiai.processes import leave_no_dump, listen
from tenants.settings import Settings

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20
MARKER = "kumiai-demo"


class DemoError(RuntimeError):
    """Something a person can put right; its text says what."""


def say(text: str) -> None:
    print(text, flush=True)


@dataclass(slots=True)
class Part:
    """A child process, its log and the pipe on which it waits for its settings."""

    name: str
    process: Child
    log: Path
    told: int

    def tell(self, settings: Mapping[str, str]) -> None:
        """Lets it start. One that has ended already is found by whoever waits for it."""
        with contextlib.suppress(BrokenPipeError), os.fdopen(self.told, "w") as pipe:
            json.dump(settings, pipe)


@dataclass(slots=True)
class DemoHome:
    """The folder that holds a demo: databases, keys, files, logs and the facts of the running one."""

    path: Path
    _lock: Any = field(default=None)

    @property
    def facts_file(self) -> Path:
        return self.path / "demo.json"

    @property
    def pid_file(self) -> Path:
        return self.path / "demo.pid"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def prepare(self) -> None:
        """Makes the folder; refuses one that holds something else."""
        if self.path.exists() and not self.path.is_dir():
            raise DemoError(f"{self.path} is a file. Choose a folder with KUMIAI_HOME=…")
        if self.path.exists() and any(self.path.iterdir()) and not (self.path / MARKER).exists():
            raise DemoError(f"{self.path} holds other files. Choose an empty folder with KUMIAI_HOME=…")
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.path / MARKER).touch()
        self.logs.mkdir(exist_ok=True)

    def try_lock(self) -> bool:
        """True when no other demo runs in this folder; the lock is held until the process ends."""
        handle = (self.path / "demo.lock").open("w")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            return False
        self._lock = handle
        return True

    def running_pid(self) -> int | None:
        """The pid of the demo that holds the lock, if one does."""
        if not (self.path / "demo.lock").exists() or not self.pid_file.exists():
            return None
        if DemoHome(self.path).try_lock():
            return None
        return int(self.pid_file.read_text())


class Servers(Protocol):
    """What a demo may stand on instead of the embedded defaults."""

    def start(self, settings: Settings, base_url: str) -> Settings:
        """The settings with the servers' addresses. Raises `DemoError`."""

    def stop(self) -> None: ...


def run_demo(settings: Settings, *, port: int, environment: Mapping[str, str], servers: Servers | None = None) -> int:
    """Runs until Ctrl-C. Returns the exit code; prints plain errors.

    environment: what the children start from (provider keys included).
    """
    leave_no_dump()
    home = DemoHome(settings.home.absolute())
    # Until all runs, every way of being told to stop unwinds what was started so far; a closed terminal is one.
    for told in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(told, signal.default_int_handler)
    try:
        home.prepare()
        if not home.try_lock():
            return _print_running(home)
        return _start(home, settings, port, environment, servers)
    except DemoError as error:
        print(f"kumiai demo: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"kumiai demo: {error.filename} may not be written. Choose a folder with KUMIAI_HOME=…", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("\n起動をやめました。")
        return 130
    finally:
        if servers is not None:
            servers.stop()


def _print_running(home: DemoHome) -> int:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not home.facts_file.exists():
        if time.monotonic() > deadline:
            raise DemoError(f"another demo is starting in {home.path} but does not finish; see {home.logs}")
        time.sleep(0.2)
    print_facts(json.loads(home.facts_file.read_text()), home)
    say("（すでに動いています。終えるには make demo-stop）")
    return 0


def _start(
    home: DemoHome, settings: Settings, port: int, environment: Mapping[str, str], servers: Servers | None
) -> int:
    home.facts_file.unlink(missing_ok=True)
    home.pid_file.write_text(str(os.getpid()))
    try:
        front = listen("127.0.0.1", port)
    except OSError as error:
        raise DemoError(
            f"127.0.0.1:{port} is taken ({error.strerror}). Choose another port: make demo PORT=8100"
        ) from error
    base_url = f"http://127.0.0.1:{front.getsockname()[1]}"
    say("Kumiai を用意しています。")
    gateway, portal = listen("127.0.0.1", 0), listen("127.0.0.1", 0)
    targets = {name: f"http://127.0.0.1:{s.getsockname()[1]}" for name, s in (("gateway", gateway), ("portal", portal))}
    parts: list[Part] = []
    stop = threading.Event()
    try:
        # Loaded once for all of them; they start when they are told the settings.
        with _step("プログラム"):
            load_parts()
        for name, sock in (("gateway", gateway), ("portal", portal)):
            parts.append(_spawn(name, sock, home, environment))
            sock.close()
        if servers is not None:
            with _step("サーバー"):
                settings = servers.start(settings, base_url)
        with _step("データベース"):
            seeded = _seed(home, settings, base_url, environment)
        told = (
            dict(seeded.environment)
            | (environment_of(settings) if servers is not None else {})
            | {
                "KUMIAI_ENV": "demo",
                "KUMIAI_HOME": str(home.path),
                "KUMIAI_PUBLIC_URL": base_url,
                "KUMIAI_GATEWAY_URL": targets["gateway"],
                # Nobody takes over here, so nobody has to be told first.
                "KUMIAI_GATEWAY_UNREADY_S": "0",
                "KUMIAI_GATEWAY_DRAIN_S": "5",
                "KUMIAI_GATEWAY_LINGER_S": "0",
                "KUMIAI_PRODUCT_NAME": seeded.product_name,
            }
        )
        for part in parts:
            part.tell(told)
        server, thread = _serve_front(front, targets)
        # The owner changes the schema, which nobody does from here on.
        worker = WorkerThread(settings.model_copy(update={"owner_database_url": SecretStr("")}), home)
        worker.start()
        try:
            with _step("入口・アプリ・後の仕事"):
                _wait_ready(parts, base_url)
            facts = seeded.facts(base_url)
            _write_facts(home, facts)
            print_facts(facts, home)
            return _watch(parts, worker, stop)
        finally:
            server.should_exit = True
            home.facts_file.unlink(missing_ok=True)
            _stop_parts(parts)
            thread.join(STOP_TIMEOUT_S)
            worker.stop()
    finally:
        _stop_parts(parts)
        home.pid_file.unlink(missing_ok=True)


def environment_of(settings: Settings) -> dict[str, str]:
    """What the processes are told of the servers; the database's owner and Keycloak's administrator stay here."""
    told = {
        "DATABASE_URL": settings.database_url,
        "PLATFORM_DATABASE_URL": settings.platform_database_url.get_secret_value(),
        "LEDGER_DATABASE_URL": settings.ledger_database_url.get_secret_value(),
        "CONTENT_DATABASE_URL": settings.content_database_url.get_secret_value(),
        "VALKEY_URL": settings.valkey_url.get_secret_value(),
        "ISSUER_KIND": settings.issuer_kind,
        "ISSUER": settings.issuer,
        "KEYCLOAK_URL": settings.keycloak_url,
        "KEYCLOAK_CLIENT_ID": settings.keycloak_client_id,
        "KEYCLOAK_CLIENT_SECRET": settings.keycloak_client_secret.get_secret_value(),
        "PORTAL_CLIENT_SECRET": settings.portal_client_secret.get_secret_value(),
    }
    return {f"KUMIAI_{name}": value for name, value in told.items()}


@contextmanager
def _step(name: str) -> Iterator[None]:
    began = time.monotonic()
    print(f"  {name} … ", end="", flush=True)
    yield
    say(f"できました（{time.monotonic() - began:.1f}秒）")


def _seed(home: DemoHome, settings: Settings, base_url: str, environment: Mapping[str, str]) -> "Any":
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError

    from kumiai.seed import ModelUnreachable, seed_demo
    from tenants.schema import migrate

    try:
        migrate(settings.urls)
        return asyncio.run(seed_demo(settings.model_copy(update={"public_url": base_url}), environment))
    except ModelUnreachable as error:
        raise DemoError(str(error)) from error
    except (DBAPIError, sqlite3.DatabaseError, CommandError) as error:
        raise DemoError(
            f"the database in {home.path} cannot be used ({type(error).__name__}). "
            "Start over with `make demo-reset` (this deletes the demo's data)."
        ) from error


class WorkerThread(threading.Thread):
    """The worker on a loop of its own in this process, which has loaded for the set-up all that it needs.

    A process of its own would load the same again (130 MB), and the demo is for small machines.
    """

    def __init__(self, settings: Settings, home: DemoHome) -> None:
        super().__init__(name="worker", daemon=True)
        self._settings = settings
        self.log = home.logs / "demo.log"
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()

    def run(self) -> None:
        from kumiai.worker import work
        from observability.logging import configure_logging

        with self.log.open("a") as log:
            configure_logging(level=self._settings.log_level, process="demo", to=log)
            self._loop.run_until_complete(work(self._settings, self._ended))
            self._loop.close()

    def stop(self) -> None:
        """Ends it after the duty it is at."""
        with contextlib.suppress(RuntimeError):  # its loop has ended already
            self._loop.call_soon_threadsafe(self._ended.set)
        self.join(STOP_TIMEOUT_S)


def _spawn(name: str, sock: socket.socket, home: DemoHome, environment: Mapping[str, str]) -> Part:
    from kumiai.__main__ import main

    log = home.logs / f"{name}.log"
    heard, told = os.pipe()
    words = [name, "--fd", str(sock.fileno()), "--parent", str(os.getpid()), "--settings-fd", str(heard)]
    own = {
        "KUMIAI_HOME": str(home.path),
        "PYTHONUNBUFFERED": "1",
        # Small processes; every thread's own arena would cost tens of MB each.
        "MALLOC_ARENA_MAX": "2",
    }
    with log.open("ab") as file:
        pid = fork(
            partial(main, words),
            environment=dict(environment) | own,
            files={1: file.fileno(), 2: file.fileno(), sock.fileno(): sock.fileno(), heard: heard},
            title=f"kumiai {name}",
            # Ctrl-C reaches this process alone, which then stops the others in order.
            new_session=True,
        )
    os.close(heard)
    return Part(name, Child(pid), log, told)


def _serve_front(sock: socket.socket, targets: Mapping[str, str]) -> tuple[uvicorn.Server, threading.Thread]:
    from kumiai.front import create_front

    config = uvicorn.Config(
        create_front(targets),
        log_config=None,
        access_log=False,
        ws="none",
        http="httptools",
        server_header=False,
        date_header=False,
        # Nobody stands before this proxy: what a client says of its address is not believed.
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name="front", daemon=True)
    thread.start()
    return server, thread


def _wait_ready(parts: list[Part], base_url: str) -> None:
    waiting = {f"{base_url}/health/ready", f"{base_url}/portal/ready"}
    deadline = time.monotonic() + START_TIMEOUT_S
    while waiting:
        for part in parts:
            if part.process.poll() is not None:
                raise DemoError(f"{part.name} ended while starting. Its log: {part.log}\n{_tail(part.log)}")
        for url in list(waiting):
            with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own loopback address
                waiting.discard(url)
        if time.monotonic() > deadline:
            raise DemoError(f"not ready after {START_TIMEOUT_S} s; see {parts[0].log.parent}")
        time.sleep(0.05)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:]


def _watch(parts: list[Part], worker: WorkerThread, stop: threading.Event) -> int:
    """Waits for Ctrl-C or SIGTERM, or for a part to end by itself, which is an error."""

    def end(_signal: int, _frame: object) -> None:
        stop.set()

    for told in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(told, end)
    while not stop.wait(0.5):
        ended = [(p.name, p.log) for p in parts if p.process.poll() is not None]
        if not worker.is_alive():
            ended.append((worker.name, worker.log))
        for name, log in ended:
            raise DemoError(f"{name} ended unexpectedly. Its log: {log}\n{_tail(log)}")
    say("\n終了しています。")
    return 0


def _stop_parts(parts: list[Part]) -> None:
    for part in parts:
        if part.process.poll() is None:
            part.process.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for part in parts:
        try:
            part.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            part.process.kill()
            part.process.wait()


def _write_facts(home: DemoHome, facts: Mapping[str, Any]) -> None:
    """Last of all, in one step and readable by its owner only: whoever sees the file can use what it says."""
    draft = home.facts_file.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(facts, file, ensure_ascii=False, indent=2)
    draft.rename(home.facts_file)


def print_facts(facts: Mapping[str, Any], home: DemoHome) -> None:
    """Where to go, who may sign in, how to call the API."""
    base_url = facts["base_url"]
    say(f"\n  開く場所   {base_url}/\n")
    say("  デモの利用者（パスワードはこのパソコンの中だけのものです）")
    names = {t["code"]: t["name"] for t in facts["tenants"]}
    roles = {"operator": "運用担当", "town_admin": "町の管理者", "section_admin": "課長", "staff": "職員"}
    for person in facts["people"]:
        entry = f"{base_url}/t/{person['tenant']}"
        say(
            f"    {names[person['tenant']]}　{roles[person['role']]}　"
            f"ログイン {person['login']}　パスワード {person['password']}　入口 {entry}"
        )
    key = facts["api_keys"][0]["key"]
    say("\n  APIを呼ぶ")
    say(f"    curl -N {base_url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\")
    say("      -H 'Content-Type: application/json' \\")
    say(
        f"""      -d '{{"model":"{facts["model"]}","stream":true,"messages":[{{"role":"user","content":"防災訓練のお知らせを書いてください"}}]}}'"""
    )
    say(f"\n  使っているAI　{facts['model_note']}")
    say(f"  同じ内容は {home.facts_file} にあります。終えるには Ctrl-C、または別の端末で make demo-stop\n")


def cluster_home(home: Path) -> Path:
    """Where the demo on servers lives: beside the plain one."""
    return home.absolute().with_name(home.absolute().name + "-cluster")


def stop_demos(settings: Settings) -> int:
    """Ends the plain demo of a home and the one on servers beside it, whichever runs. Returns the exit code."""
    homes = [h for h in (settings.home, cluster_home(settings.home)) if DemoHome(h.absolute()).running_pid()]
    return max(stop_demo(settings.model_copy(update={"home": h})) for h in homes or [settings.home])


def stop_demo(settings: Settings) -> int:
    """Ends a demo running in the home folder; 0 also when none runs."""
    home = DemoHome(settings.home.absolute())
    pid = home.running_pid()
    if pid is None:
        say("デモは動いていません。")
        return 0
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S + 10
    while home.running_pid() is not None:
        if time.monotonic() > deadline:
            print("kumiai demo-stop: the demo does not end; see its logs", file=sys.stderr)
            return 1
        time.sleep(0.1)
    say("デモを終えました。")
    return 0


def reset_demo(settings: Settings) -> int:
    """Stops a running demo and deletes its folder, which must be a demo's."""
    code = stop_demo(settings)
    home = settings.home.absolute()
    if code == 0 and home.exists():
        if not (home / MARKER).exists():
            print(f"kumiai demo-reset: {home} is not a demo's folder; nothing was deleted", file=sys.stderr)
            return 1
        shutil.rmtree(home)
        say(f"{home} を消しました。")
    return code
