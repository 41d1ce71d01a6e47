"""The form of a sealed file: `magic | key_id | salt | chunk …`, readable at any place and in clear nowhere on a disk.

Each chunk is sealed by a key of this file alone (AES-256-GCM), with its number and a last-chunk mark in nonce and
associated data (the STREAM construction), so cutting, reordering or swapping fails.
"""

import hashlib
import io
import os
from typing import TYPE_CHECKING, BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tenants.vault import ContentUnreadable, Keyring, derive_file_key

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

MAGIC: Final = b"KMB1"
SALT_BYTES: Final = 32
HEAD_BYTES: Final = len(MAGIC) + 16 + SALT_BYTES
CHUNK_BYTES: Final = 256 * 1024
TAG_BYTES: Final = 16
MIDDLE: Final = b"\0"
LAST: Final = b"\1"


def begin_sealed(ring: Keyring, name: bytes) -> tuple[bytes, AESGCM]:
    """The head of a new file and what seals its chunks. name: what the file is in its town; a copy under another one does not open."""
    key = ring.keys[0]
    salt = os.urandom(SALT_BYTES)
    return MAGIC + key.id.bytes + salt, derive_file_key(key, salt=salt, purpose=ring.tenant_id.bytes + name)


def open_head(ring: Keyring, name: bytes, head: bytes) -> AESGCM:
    """What opens the chunks of a file. Raises `ContentUnreadable`."""
    key = ring.find(key_of(head))
    if len(head) != HEAD_BYTES or not head.startswith(MAGIC) or key is None:
        raise ContentUnreadable("復元の手順を、管理者に確認してください。")
    return derive_file_key(key, salt=head[len(MAGIC) + 16 :], purpose=ring.tenant_id.bytes + name)


def key_of(head: bytes) -> bytes:
    """The id of the key that a file was sealed with."""
    return head[len(MAGIC) : len(MAGIC) + 16]


def seal_chunk(sealer: AESGCM, head: bytes, number: int, mark: bytes, chunk: bytes) -> bytes:
    nonce = _chunk_nonce(number, mark)
    return sealer.encrypt(nonce, chunk, head + nonce)


def open_chunk(opener: AESGCM, head: bytes, number: int, mark: bytes, sealed: bytes) -> bytes:
    """Raises `ContentUnreadable`."""
    nonce = _chunk_nonce(number, mark)
    try:
        return opener.decrypt(nonce, sealed, head + nonce)
    except InvalidTag as error:
        raise ContentUnreadable("復元の手順を、管理者に確認してください。") from error


def _chunk_nonce(number: int, mark: bytes) -> bytes:
    return number.to_bytes(11, "big") + mark


class SealedWriter(io.RawIOBase):
    """Seals what is written to it, from beginning to end; nothing but the last chunk waits in memory.

    `finish` writes the end: without it the file does not open. `sha256`: of what was written, in clear.
    """

    def __init__(self, file: BinaryIO, ring: Keyring, name: bytes) -> None:
        self._file = file
        self._head, self._sealer = begin_sealed(ring, name)
        self._number = 0
        self._waiting = bytearray()
        self.sha256 = hashlib.sha256()
        file.write(self._head)

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer") -> int:
        part = bytes(data)
        self.sha256.update(part)
        self._waiting += part
        # The last chunk is marked, so one full chunk is kept back until more arrives.
        while len(self._waiting) > CHUNK_BYTES:
            self._seal(MIDDLE)
        return len(part)

    def finish(self) -> None:
        self._seal(LAST)

    def _seal(self, mark: bytes) -> None:
        chunk = bytes(self._waiting[:CHUNK_BYTES])
        del self._waiting[:CHUNK_BYTES]
        self._file.write(seal_chunk(self._sealer, self._head, self._number, mark, chunk))
        self._number += 1


class SealedReader(io.RawIOBase):
    """A sealed file as one in clear, also from the middle; every chunk is checked before any of it is handed out.

    Raises `ContentUnreadable`, at once when the end is missing. Closing it closes the file.
    """

    def __init__(self, file: BinaryIO, ring: Keyring, name: bytes) -> None:
        self._file = file
        self._head = file.read(HEAD_BYTES)
        self._opener = open_head(ring, name, self._head)
        sealed_bytes = file.seek(0, os.SEEK_END) - HEAD_BYTES
        self._last = max(0, -(-sealed_bytes // (CHUNK_BYTES + TAG_BYTES)) - 1)
        self._number, self._chunk = -1, b""
        self._position = 0
        self.size_bytes = self._last * CHUNK_BYTES + len(self._opened(self._last))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size_bytes}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        if self._position >= self.size_bytes:
            return 0
        number, skip = divmod(self._position, CHUNK_BYTES)
        view = memoryview(buffer)
        part = self._opened(number)[skip : skip + len(view)]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _opened(self, number: int) -> bytes:
        if number != self._number:
            self._file.seek(HEAD_BYTES + number * (CHUNK_BYTES + TAG_BYTES))
            sealed = self._file.read(CHUNK_BYTES + TAG_BYTES)
            mark = LAST if number == self._last else MIDDLE
            self._chunk, self._number = open_chunk(self._opener, self._head, number, mark, sealed), number
        return self._chunk
