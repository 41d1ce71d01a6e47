"""A town with a writing ledger on each database, and its vault: what sealing and signing need."""

from pathlib import Path

import pytest

from tenants.audit.checkpoints import Signer
from tenants.blobs import Blobs, FolderStore
from tenants.documents import Documents
from tenants.erasure import Content
from tenants.keyfiles import KeyFile
from tenants.vault import FileRootKeys, Vault
from tests.integration.ledger.conftest import Town, ledger, town, urls

__all__ = ["ledger", "town", "urls"]


@pytest.fixture
def vault(town: Town, tmp_path: Path) -> Vault:
    return Vault(town.db, FileRootKeys(KeyFile(tmp_path / "keys" / "root", create=True)))


@pytest.fixture
def signer(town: Town, vault: Vault) -> Signer:
    return Signer(town.db, vault)


@pytest.fixture
def content(town: Town, vault: Vault, tmp_path: Path) -> Content:
    return Content(vault, Documents(town.db, vault), Blobs(town.db, vault, FolderStore(tmp_path / "blobs")))
