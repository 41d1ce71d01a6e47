"""For tests of apps: the whole product as processes, in a folder and on a port of its own, and browsers to use it."""

import contextlib
import html
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, Self

import httpx

START_S = 90
STOP_S = 30


class DemoDidNotStart(RuntimeError):
    """What the demo printed."""


class Launched(Protocol):
    """A process, in the words of `subprocess.Popen`."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...


@dataclass(frozen=True)
class DemoPerson:
    """As demo.json tells them."""

    tenant: str
    role: str
    login: str
    password: str = field(repr=False)


class DemoProcess:
    """`kumiai demo` on a free port. Provider keys and settings of the test run do not reach it."""

    command = "demo"
    start_s = START_S

    def __init__(self, home: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.output = home.with_name(home.name + ".log")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("KUMIAI_") and "API_KEY" not in k}  # noqa: TID251 - what a child needs of the run
        self.environment = inherited | {"KUMIAI_HOME": str(home)} | dict(environment or {})
        self._process: Launched | None = None
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *arguments: str) -> None:
        """Returns when demo.json says that all answers."""
        with self.output.open("ab") as output:
            self._process = self._launch(self.command, "--port", "0", *arguments, output=output)
        deadline = time.monotonic() + self.start_s
        while not (self.home / "demo.json").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise DemoDidNotStart(self.output.read_text(errors="replace")[-3000:])
            time.sleep(0.05)
        self.facts = json.loads((self.home / "demo.json").read_text())

    def _launch(self, *words: str, output: IO[bytes]) -> "Launched":
        return subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-m", "kumiai", *words],
            env=self.environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def stop(self, *, by: signal.Signals = signal.SIGINT) -> int:
        """The exit code."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(by)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        if self._process.poll() is None:
            self._process.kill()
        code = self._process.wait()
        self._process = None
        return code

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def base_url(self) -> str:
        return str(self.facts["base_url"])

    @property
    def people(self) -> list[DemoPerson]:
        return [DemoPerson(**p) for p in self.facts["people"]]

    @property
    def towns(self) -> list[str]:
        """Codes of the three towns."""
        return [p.tenant for p in self.people if p.role == "town_admin"]

    def person(self, role: str, town: int = 0, *, nth: int = 0) -> DemoPerson:
        """The nth of a role in one of the three towns; the operator belongs to none."""
        found = [p for p in self.people if p.role == role and (role == "operator" or p.tenant == self.towns[town])]
        return found[nth]

    def api_key(self, town: int = 0) -> str:
        return next(str(k["key"]) for k in self.facts["api_keys"] if k["tenant"] == self.towns[town])

    def browser(self) -> "Browser":
        return Browser(self.base_url)

    @contextlib.contextmanager
    def signed_in(self, role: str, town: int = 0, *, nth: int = 0) -> Iterator["Browser"]:
        with self.browser() as browser:
            browser.sign_in(self.person(role, town, nth=nth))
            yield browser

    @contextlib.contextmanager
    def database(self, name: str = "kumiai") -> Iterator[sqlite3.Connection]:
        """One of its files, past the product."""
        with contextlib.closing(
            sqlite3.connect(self.home / f"{name}.sqlite3", timeout=15, isolation_level=None)
        ) as file:
            file.row_factory = sqlite3.Row
            yield file

    def processes(self) -> list[Path]:
        """Its folders in /proc, the demo's own first."""
        parts = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [Path(f"/proc/{pid}") for pid in (self.pid, *parts)]

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """`kumiai …` beside the running demo."""
        return subprocess.run(  # noqa: S603 - as above
            [sys.executable, "-m", "kumiai", *words], env=self.environment, input=stdin, text=True,
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip


class Browser(httpx.Client):
    """A browser without scripts: it keeps cookies, says where its forms come from and follows no redirect by itself."""

    def __init__(self, base_url: str) -> None:
        super().__init__(base_url=base_url, timeout=30, trust_env=False)
        self.csrf = ""

    def sign_in(self, person: DemoPerson) -> None:
        answer = self.try_to_sign_in(person.tenant, person.login, person.password)
        assert answer.status_code == 303, f"{answer.status_code} {answer.text[:500]}"
        page = self.get("/settings")
        assert page.status_code == 200
        self.csrf = csrf_of(page.text)

    def sign_in_again(self, person: DemoPerson) -> None:
        """Through the issuer once more, which may still know this browser."""
        begun = self.get("/auth/signin", params={"town": person.tenant, "login": person.login})
        answer = self.get(begun.headers["location"])
        if answer.status_code != 303:
            answer = self.post(
                form_action(answer), data={"username": person.login, "password": person.password},
                headers={"origin": self.origin},
            )  # fmt: skip
        assert self.get(answer.headers["location"]).status_code == 303
        self.csrf = csrf_of(self.get("/settings").text)

    def try_to_sign_in(self, town: str, login: str, password: str) -> httpx.Response:
        """The answer of the portal's callback, or what the issuer said instead."""
        form = self.issuer_form(town, login)
        answer = self.post(
            form_action(form), data={"username": login, "password": password}, headers={"origin": self.origin}
        )
        if answer.status_code != 303:
            return answer
        return self.get(answer.headers["location"])

    def issuer_form(self, town: str, login: str = "") -> httpx.Response:
        """The issuer's page, as the town's entry leads to it."""
        begun = self.get("/auth/signin", params={"town": town, "login": login})
        assert begun.status_code == 303, begun.text[:500]
        page = self.get(begun.headers["location"])
        assert page.status_code == 200
        return page

    def submit(self, path: str, data: Mapping[str, Any] | None = None, **options: Any) -> httpx.Response:
        """A form of ours: with the page's origin and the person's token."""
        return self.post(path, data={**(data or {}), "csrf": self.csrf}, headers={"origin": self.origin}, **options)

    @property
    def origin(self) -> str:
        return str(self.base_url).rstrip("/")


def csrf_of(page: str) -> str:
    found = re.search(r'<meta name="csrf" content="([^"]+)"', page)
    assert found is not None
    return html.unescape(found[1])


def form_action(page: httpx.Response) -> str:
    found = re.search(r'<form method="post" action="([^"]+)"', page.text)
    assert found is not None
    return html.unescape(found[1])
