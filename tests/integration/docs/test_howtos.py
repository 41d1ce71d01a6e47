"""The examples of the how-tos, run as they are printed, and the tables compared with what the code says."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gateway.server.providers.catalogue import CatalogueEntry, load_catalogue
from gateway.server.settings import ProviderSettings
from observability.problems import Problem
from tenants.db import DatabaseUrls
from tests.gateways import Region, RunningGateway, Town
from tests.own_region import gateway, town

__all__ = ["gateway", "town"]

DOCS = Path(__file__).resolve().parents[3] / "docs" / "howto"
API = (DOCS / "api.md").read_text("utf-8")
MODELS = (DOCS / "models.md").read_text("utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory, sqlite_template: DatabaseUrls) -> Region:
    return Region.on_sqlite(tmp_path_factory.mktemp("docs"), sqlite_template)


def environment(gateway: RunningGateway, town: Town) -> dict[str, str]:
    return {"PATH": os.defpath, "NO_PROXY": "127.0.0.1", "KUMIAI_URL": gateway.url, "KUMIAI_KEY": town.key}


def test_python_examples_run(gateway: RunningGateway, town: Town) -> None:
    source = "\n".join(blocks(API, "python"))
    assert source.count("client.chat.completions") == 2
    done = subprocess.run(
        [sys.executable, "-"], input=source, env=environment(gateway, town), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "防災訓練" in done.stdout
    assert "title=" in done.stdout
    assert "保育所の申込期限は11月30日です。" in done.stdout.splitlines()


def test_curl_examples_run(gateway: RunningGateway, town: Town) -> None:
    if shutil.which("curl", path=os.defpath) is None:
        pytest.skip("curl is not installed")
    calls = [b for b in blocks(API, "bash") + blocks(MODELS, "bash") if "curl" in b]
    assert len(calls) == 7
    for call in calls:
        lines = "\n".join(line for line in call.splitlines() if not line.startswith("kumiai "))
        done = subprocess.run(
            ["bash", "-ec", lines], env=environment(gateway, town), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert '"error":{' not in done.stdout
        assert '"object"' in done.stdout


def commands(text: str) -> list[list[str]]:
    """What stands behind `kumiai` in the bash blocks, comments left out."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines() if line.startswith("kumiai ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("words", [c for c in commands(API) + commands(MODELS) if c != ["doctor"]], ids=" ".join)
def test_commands_run(region: Region, town: Town, words: list[str]) -> None:
    key = region.make_key(town).split("_")[2]
    given = [{"046914": town.code, "KEYID": key}.get(word, word) for word in words]
    region.command(*given)


def test_commands_were_found() -> None:
    assert len(commands(API)) >= 6
    assert len(commands(MODELS)) >= 5


def test_every_code_is_told_and_none_is_made_up() -> None:
    told = set(re.findall(r"`([a-z_]+)`", " ".join(re.findall(r"^\| \d{3} \|(.*?)\|", API, re.MULTILINE))))
    for module in (
        "gateway.contracts", "gateway.server.http", "gateway.server.pipeline", "gateway.server.routing",
        "gateway.server.authentication", "gateway.server.providers.base", "tenants.quota.terms",
        "tenants.identity.access_list",
    ):  # fmt: skip
        importlib.import_module(module)
    known = {code_of(kind) for kind in subclasses(Problem)}
    assert told - {"duplicate_key"} <= known
    reachable = {code_of(k) for k in subclasses(Problem) if k.type.startswith("urn:problem:gateway:")}
    # Only pages and the client of our own processes raise these.
    ours = {"refused", "unreachable", "silent", "answer_cut_off", "answer_unreadable", "method_not_allowed"}
    assert reachable - ours - told == set()


def code_of(kind: type[Problem]) -> str:
    return kind.type.rsplit(":", 1)[-1].replace("-", "_")


def subclasses(kind: type[Problem]) -> set[type[Problem]]:
    found = {k for k in kind.__subclasses__() if "GatewayProblem" not in {b.__name__ for b in k.__mro__[:-1]}}
    return found.union(*(subclasses(k) for k in found)) if found else set()


def test_every_setting_of_a_provider_is_told() -> None:
    names = {name.upper() for name in ProviderSettings.model_fields}
    assert {name for name in names if f"`{name}`" not in MODELS} == set()


def test_every_field_of_the_catalogue_is_told() -> None:
    untold = {name for name in CatalogueEntry.model_fields if f"`{name}`" not in MODELS and f"{name}:" not in MODELS}
    assert untold <= {"base_url_from", "model_from", "key_from", "needs", "extra"}


def test_the_example_of_a_catalogue_loads(tmp_path: Path) -> None:
    [example] = blocks(MODELS, "yaml")
    path = tmp_path / "own.yaml"
    path.write_text(example, "utf-8")
    first = load_catalogue(path)[0]
    assert first.id == yaml.safe_load(example)["deployments"][0]["id"] == "town/llm"
