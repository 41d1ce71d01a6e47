"""compose.yaml has the shape it must have; whether the containers run is not tried where no engine is."""

import re
from pathlib import Path
from typing import Any

import yaml

from kumiai.local.keycloak import VERSION
from tenants.identity.realm import LOGIN_THEME, THEMES

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def test_the_servers_are_those_of_the_demo_on_servers() -> None:
    assert set(SERVICES) == {"postgres", "pgbouncer", "valkey", "keycloak"}
    assert SERVICES["keycloak"]["image"] == f"keycloak/keycloak:{VERSION}"


def test_every_server_listens_on_loopback_alone() -> None:
    assert {s["network_mode"] for s in SERVICES.values()} == {"host"}
    assert "listen_addresses=127.0.0.1" in SERVICES["postgres"]["command"]
    assert "listen_addr = 127.0.0.1\n" in COMPOSE["configs"]["pgbouncer"]["content"]
    valkey = SERVICES["valkey"]["command"]
    assert valkey[valkey.index("--bind") + 1] == "127.0.0.1"
    assert "--http-host=127.0.0.1" in SERVICES["keycloak"]["command"]


def test_no_password_is_written_down_or_has_a_default() -> None:
    found = [v for s in SERVICES.values() for k, v in s.get("environment", {}).items() if "PASSWORD" in k]
    assert len(found) == 5
    assert all(re.fullmatch(r"\$\{[A-Z_]+:\?choose one in \.env\}", value) for value in found)


def test_images_have_a_version_and_no_registry_of_their_own() -> None:
    images = [s["image"] for s in SERVICES.values() if "image" in s]
    assert len(images) == 3
    assert all(re.fullmatch(r"[a-z]+(/[a-z]+)?:\d[\d.]*", image) for image in images)


def test_what_is_mounted_and_configured_is_there() -> None:
    for service in SERVICES.values():
        for config in service.get("configs", ()):
            assert config["source"] in COMPOSE["configs"]
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).is_dir(), source
    assert (THEMES / LOGIN_THEME / "login" / "theme.properties").is_file()


def test_keycloak_pins_its_name_and_opens_no_cluster_ports() -> None:
    command = SERVICES["keycloak"]["command"]
    assert "--hostname=http://127.0.0.1:8180" in command
    assert "--cache=local" in command
