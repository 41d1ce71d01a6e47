"""`make demo` at its edges, in the order in which a newcomer meets them: every start here is a real one."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.demo_process import Browser, DemoPerson

ROOT = Path(__file__).parents[3]
START_S, STOP_S = 90, 40
_CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("KUMIAI_") and "API_KEY" not in k}  # noqa: TID251 - what a shell has


def _environment(home: Path) -> dict[str, str]:
    return _CLEAN | {"KUMIAI_HOME": str(home)}


def _make(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`make …`, to its end."""
    return subprocess.run(
        ["make", "-s", *words],
        cwd=ROOT,
        env=_environment(home),
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )


def processes_of(home: Path) -> list[int]:
    """Whoever runs with this home."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            told = (folder / "environ").read_bytes() if folder.name.isdigit() else b""
        except OSError:
            continue
        if f"KUMIAI_HOME={home}\0".encode() in told and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


class Running:
    """A `make demo` in a terminal of its own."""

    def __init__(self, home: Path, target: str = "demo", port: int = 0) -> None:
        self.home = home
        self.output = home.with_name(f"{home.name}-{target}.out")
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                ["make", "-s", target, f"PORT={port}"], cwd=ROOT, env=_environment(home), stdout=file, stderr=file,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        began = time.time()
        deadline = time.monotonic() + START_S
        # One that was killed has left its facts behind; those of this one are newer.
        while not (home / "demo.json").exists() or (home / "demo.json").stat().st_mtime < began:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)
        self.facts: dict[str, Any] = json.loads((home / "demo.json").read_text())

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def base_url(self) -> str:
        return str(self.facts["base_url"])

    @property
    def port(self) -> int:
        return int(self.base_url.rsplit(":", 1)[1])

    def signal(self, what: signal.Signals) -> int:
        """As a terminal sends it: to make and to the demo alike. Returns make's exit code."""
        os.killpg(self.process.pid, what)
        return self.wait()

    def wait(self) -> int:
        return self.process.wait(STOP_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(home: Path, target: str = "demo") -> Running:
        running = Running(home, target)
        started.append(running)
        return running

    yield start
    for running in started:
        if running.process.poll() is None:
            os.killpg(running.process.pid, signal.SIGTERM)
            running.process.wait(STOP_S)
        for pid in processes_of(running.home):
            os.kill(pid, signal.SIGKILL)


def test_a_demo_from_its_start_to_its_end(tmp_path: Path, start: Callable[..., Running]) -> None:
    """One start, in a folder whose name has spaces, looked at from all sides."""
    home = tmp_path / "わたしの home 1"
    demo = start(home)

    # demo.json is written last: at this moment everything answers, and everybody can work at once.
    with httpx.Client(base_url=demo.base_url, trust_env=False, timeout=30) as client:
        for path in ("/health/live", "/health/ready", "/", "/dev-issuer/.well-known/openid-configuration"):
            assert client.get(path).status_code == 200, path
        for key in demo.facts["api_keys"]:
            answer = client.get("/v1/models", headers={"authorization": f"Bearer {key['key']}"})
            assert answer.status_code == 200
            assert answer.json()["data"]
    assert stat.S_IMODE((home / "demo.json").stat().st_mode) == 0o600
    _check_facts(demo.facts)
    for person in demo.facts["people"]:
        with Browser(demo.base_url) as browser:
            browser.sign_in(DemoPerson(**person))
            assert browser.get("/apps/chat").status_code == 200

    # It showed progress, and told address, people and how to call the API.
    assert demo.base_url in demo.said
    assert "できました" in demo.said
    for word in [p["password"] for p in demo.facts["people"]] + ["curl", demo.facts["api_keys"][0]["key"]]:
        assert word in demo.said

    # A second one tells the same facts and leaves the first alone.
    twin = _make(home, "demo", "PORT=0")
    assert twin.returncode == 0, twin.stderr
    assert demo.said[demo.said.index("開く場所") :].strip() in twin.stdout
    assert json.loads((home / "demo.json").read_text()) == demo.facts

    # Another folder cannot have its port.
    other = tmp_path / "other"
    taken = _make(other, "demo", f"PORT={demo.port}")
    assert taken.returncode != 0
    assert f"127.0.0.1:{demo.port} is taken" in taken.stderr
    assert "PORT=" in taken.stderr
    assert "Traceback" not in taken.stderr
    assert processes_of(other) == []

    # Ctrl-C ends it without a trace of a process, and the facts of what no longer runs are gone.
    assert len(processes_of(home)) >= 3
    demo.signal(signal.SIGINT)
    assert "Traceback" not in demo.said
    assert processes_of(home) == []
    assert not (home / "demo.json").exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(demo.base_url, trust_env=False)

    # Started again it is the same installation. Killed, it leaves nothing running.
    second = start(home)
    assert second.facts["people"] == demo.facts["people"]
    assert second.facts["api_keys"] == demo.facts["api_keys"]
    os.kill(int((home / "demo.pid").read_text()), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while processes_of(home):
        assert time.monotonic() < deadline
        time.sleep(0.1)

    # What was cut off is taken up again; from another shell it ends as well.
    third = start(home)
    assert third.facts["people"] == demo.facts["people"]
    stopped = _make(home, "demo-stop")
    assert (stopped.returncode, "終えました" in stopped.stdout) == (0, True)
    assert third.wait() == 0
    assert processes_of(home) == []
    nothing = _make(home, "demo-stop")
    assert (nothing.returncode, "動いていません" in nothing.stdout) == (0, True)

    # A broken database is said plainly; starting over makes a new one.
    for name in ("dev-issuer.sqlite3", "kumiai.sqlite3"):
        for side in ("-wal", "-shm"):
            (home / f"{name}{side}").unlink(missing_ok=True)
        (home / name).write_bytes(b"this is no database\n" * 500)
        broken = _make(home, "demo", "PORT=0")
        assert broken.returncode != 0, name
        assert "cannot be used" in broken.stderr
        assert "demo-reset" in broken.stderr
        assert "Traceback" not in broken.stderr
        assert processes_of(home) == []
    fresh = start(home, "demo-reset")
    assert "消しました" in fresh.said
    assert [p["password"] for p in fresh.facts["people"]] != [p["password"] for p in demo.facts["people"]]

    # A part that dies takes the rest along, with its log named.
    [gateway] = [pid for pid in processes_of(home) if Path(f"/proc/{pid}/comm").read_text() == "kumiai gateway\n"]
    os.kill(gateway, signal.SIGKILL)
    assert fresh.wait() != 0
    assert "gateway ended unexpectedly" in fresh.said
    assert "gateway.log" in fresh.said
    assert "Traceback" not in fresh.said
    assert processes_of(home) == []


def _check_facts(facts: dict[str, Any]) -> None:
    """As promised: one operator, and for each of three towns an administrator, a head and two clerks, and a key."""
    people = facts["people"]
    assert all(set(p) == {"tenant", "role", "login", "password"} for p in people)
    assert all(set(k) == {"tenant", "key"} for k in facts["api_keys"])
    assert facts["base_url"].startswith("http://127.0.0.1:")
    by_tenant: dict[str, list[str]] = {}
    for person in people:
        assert len(person["tenant"]) == 6
        assert person["tenant"].isdigit()
        by_tenant.setdefault(person["tenant"], []).append(person["role"])
    roles = sorted(sorted(r) for r in by_tenant.values())
    town = sorted(["town_admin", "section_admin", "staff", "staff"])
    assert roles == sorted([["operator"], town, town, town])
    operator = next(p["tenant"] for p in people if p["role"] == "operator")
    assert {k["tenant"] for k in facts["api_keys"]} == set(by_tenant) - {operator}


# ── what is refused before anything starts ───────────────────────────────────────────────────────────────────────


def _demo(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kumiai", *words], env=_environment(home), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "報告書.txt").write_text("大事な文書")
    for words in (("demo", "--port", "0"), ("demo-reset", "--port", "0")):
        refused = _demo(tmp_path, *words)
        assert refused.returncode == 1
        assert str(tmp_path) in refused.stderr
        assert "Traceback" not in refused.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["報告書.txt"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    refused = _demo(tmp_path / "home", "demo", "--port", "0")
    assert refused.returncode == 1
    assert "is a file" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_port_that_is_no_port_is_refused(tmp_path: Path) -> None:
    refused = _demo(tmp_path / "home", "demo", "--port", "99999")
    assert refused.returncode in (1, 2)
    assert "Traceback" not in refused.stderr


def test_a_taken_port_is_said_within_seconds(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = _demo(tmp_path / "home", "demo", "--port", str(port))
    assert refused.returncode == 1
    assert f"127.0.0.1:{port} is taken" in refused.stderr
    assert not (tmp_path / "home" / "demo.json").exists()


# ── the machine ──────────────────────────────────────────────────────────────────────────────────────────────────

_NEEDED = ("bash", "cat", "cksum", "dirname", "env", "mkdir", "rm", "ls", "printf")


@pytest.fixture
def bare(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`requirements/install.sh` on a machine that has these programs only."""

    def install(**programs: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "bin"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in _NEEDED:
            found = shutil.which(name)
            if found:
                (folder / name).symlink_to(found)
        for name, script in programs.items():
            (folder / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
            (folder / name).chmod(0o755)
        project = tmp_path / "project"
        shutil.rmtree(project, ignore_errors=True)
        (project / "requirements").mkdir(parents=True)
        for path in (ROOT / "requirements").iterdir():
            shutil.copy(path, project / "requirements" / path.name)
        shutil.copy(ROOT / "pyproject.toml", project)
        return subprocess.run(
            ["bash", "requirements/install.sh", "runtime"], cwd=project, env={"PATH": str(folder), "HOME": str(tmp_path)},
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    return install


_PYTHON = f'exec "{sys.executable}" "$@"'
_WITHOUT_VENV = f'case "$*" in *"import venv"*) exit 1;; esac; exec "{sys.executable}" "$@"'


@pytest.mark.parametrize(("programs", "said"), [
    ({"python3": _PYTHON}, "git is missing"),
    ({"git": "exit 0"}, "Python 3.11 or newer is missing"),
    ({"git": "exit 0", "python3": "exit 1"}, "Python 3.11 or newer is missing"),
    ({"git": "exit 0", "python3": _WITHOUT_VENV}, "venv module is missing"),
], ids=["no git", "no python", "an old python", "no venv"])  # fmt: skip
def test_what_the_machine_lacks_is_said_plainly(
    bare: Callable[..., subprocess.CompletedProcess[str]], programs: dict[str, str], said: str
) -> None:
    refused = bare(**programs)
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert said in refused.stderr
    assert "apt-get install" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_clones_installed_at_once_share_bytecode_and_each_runs_its_own_source(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    clones = [tmp_path / "one", tmp_path / "two"]
    for clone in clones:
        for name in ("kumiai", "apps", "gateway", "tenants", "observability", "requirements"):
            shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    running = [
        subprocess.Popen(
            [sys.executable, "requirements/bytecode.py", str(cache)], cwd=clone, env=_CLEAN | {"PYTHONPATH": str(clone)}
        )
        for clone in clones
    ]
    assert [process.wait(START_S) for process in running] == [0, 0]
    [kept] = cache.iterdir()

    compiled = Path("kumiai/__pycache__") / f"demo.{sys.implementation.cache_tag}.pyc"
    assert all((clone / compiled).samefile(kept / compiled) for clone in clones)
    # Same length, and as old as the bytecode: only the content tells that it changed.
    source = clones[0] / "kumiai" / "demo.py"
    told = source.stat()
    source.write_text(source.read_text().replace('MARKER = "kumiai-demo"', 'MARKER = "other-demo!"'))
    os.utime(source, ns=(told.st_atime_ns, told.st_mtime_ns))
    for clone, marker in zip(clones, ("other-demo!", "kumiai-demo"), strict=True):
        printed = subprocess.run(
            [sys.executable, "-c", "from kumiai.demo import MARKER; print(MARKER)"], cwd=clone,
            env=_CLEAN | {"PYTHONPATH": str(clone)}, capture_output=True, text=True, timeout=START_S, check=True,
        )  # fmt: skip
        assert printed.stdout.strip() == marker
