"""The gateway's own ear as a model: transcripts of recordings that never leave its machine."""

from collections.abc import AsyncIterator

import orjson

from gateway.server.providers.base import Deployment, UpstreamRequest, UpstreamResponse, Usage


class Speech:
    """Answers with what was heard when the recording was looked at; that was the work."""

    name = "speech"

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """See `Provider.send`."""
        assert request.recording is not None
        pieces = request.recording.pieces or ()
        said = {
            "text": request.recording.text,
            "segments": [{"start": p.start, "end": p.end, "text": p.text} for p in pieces],
            "language": request.body.get("language", "ja"),
        }
        return _Whole(orjson.dumps(said))

    async def list_models(self, deployment: Deployment) -> list[str]:
        return [deployment.upstream_model]

    async def aclose(self) -> None:
        return


class _Whole:
    content_type = "application/json"

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.usage: Usage | None = None
        self.finish_reason: str | None = "stop"
        self.output_text_bytes = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._body

    async def aclose(self) -> None:
        return
