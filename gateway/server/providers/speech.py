"""The gateway's own ear as a model: transcripts of recordings that never leave its machine."""

import orjson

from gateway.server.providers.base import Deployment, UpstreamRequest, UpstreamResponse, Whole


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
        return Whole(orjson.dumps(said), None, "stop", 0)

    async def list_models(self, deployment: Deployment) -> list[str]:
        return [deployment.upstream_model]

    async def aclose(self) -> None:
        return
