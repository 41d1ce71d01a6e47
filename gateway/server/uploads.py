"""Files in a call (pictures, recordings), shown to the virus scanner before anything reads them, where one is set."""

from collections.abc import Iterator
from http import HTTPStatus

import anyio.to_thread

from gateway.contracts import ModelRequest
from gateway.reading.scanning import InfectedFile, ScannerUnavailable, scanner_of
from gateway.server.pictures import pictures_in
from gateway.server.speech import sound_data_in
from observability.problems import Problem, Unavailable


class InfectedUpload(Problem):
    type = "urn:problem:gateway:infected-file"
    status = HTTPStatus.BAD_REQUEST
    title = "ウイルスの検査で止められたファイルが入っています"


class UploadNotScanned(Unavailable):
    type = "urn:problem:gateway:file-not-scanned"
    title = "ファイルの検査ができません"


class UploadScan:
    """One per gateway process. address: as `scanner_of` reads it; empty when nothing is scanned."""

    def __init__(self, address: str) -> None:
        self._scanner = scanner_of(address) if address else None

    async def check(self, request: ModelRequest) -> None:
        """Returns when every file is clean. Raises `InfectedUpload`, and `UploadNotScanned` while the scanner does not say."""
        if self._scanner is None:
            return
        for data in await anyio.to_thread.run_sync(lambda: list(_files_of(request))):
            try:
                await self._scanner.check(data)
            except InfectedFile as error:
                raise InfectedUpload(
                    "送っていません。ファイルを開かず、町の情報担当に知らせてください。",
                    param="file" if request.sound else "messages",
                ) from error
            except ScannerUnavailable as error:
                raise UploadNotScanned(
                    "少し待ってから、もう一度送ってください。", retry_after_s=error.retry_after_s
                ) from error


def _files_of(request: ModelRequest) -> Iterator[bytes]:
    if request.sound:
        yield request.sound
        return
    yield from pictures_in(request.body)
    yield from sound_data_in(request.body)
