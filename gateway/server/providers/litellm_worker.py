"""The process that runs `litellm.Router` for the gateway: orders come by standard input, answers leave by output.

It runs at low priority, because beside the fast path it would multiply its tail; it ends when its input closes, so it
cannot outlive the gateway. What a vendor says in an error stays here: it may quote the prompt.
"""

import asyncio
import functools
import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from gateway.server.providers.litellm import (
    AHEAD,
    UnsupportedError,
    choices_from,
    frame,
    load_litellm,
    read_frame,
    supported_parameters,
    thought_bytes,
    usage_from,
)
from gateway.server.providers.outbound import Egress

_NICENESS: Final = 10
_KEPT_ROUTERS: Final = 256

Reason = Literal["status", "connect", "timeout", "unsupported", "broken"]


class Orders:
    """Calls under way, by the gateway's number."""

    def __init__(self, litellm: Any, writer: asyncio.StreamWriter) -> None:
        self._litellm = litellm
        self._writer = writer
        self._routers: dict[str, Any] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        # Pieces that each stream may send before it is asked for more.
        self._wanted: dict[int, asyncio.Semaphore] = {}

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Serves until the input closes."""
        await self._tell({"kind": "ready"})
        while (order := await read_frame(reader)) is not None:
            number = order["id"]
            if order["kind"] == "cancel":
                if task := self._tasks.get(number):
                    task.cancel()
            elif order["kind"] == "more":
                if wanted := self._wanted.get(number):
                    for _ in range(AHEAD // 2):
                        wanted.release()
            else:
                self._wanted[number] = asyncio.Semaphore(AHEAD)
                task = asyncio.ensure_future(self._serve(number, order))
                self._tasks[number] = task
                task.add_done_callback(functools.partial(self._forget, number))
        for task in list(self._tasks.values()):
            task.cancel()

    def _forget(self, number: int, _task: asyncio.Task[None]) -> None:
        self._tasks.pop(number, None)
        self._wanted.pop(number, None)

    async def _tell(self, message: Mapping[str, object]) -> None:
        self._writer.write(frame(message))
        await self._writer.drain()

    async def _serve(self, number: int, order: Mapping[str, Any]) -> None:
        try:
            await self._call(number, order)
        except Exception as error:  # noqa: BLE001  # the worker loop: LiteLLM raises anything, one call must not end all
            await self._tell({"id": number, "kind": "error", **_named(error)})

    def _router(self, deployment: Mapping[str, Any]) -> Any:
        """A Router per deployment and key, without retries, fallbacks, cool-downs or cache: the gateway has its own."""
        key = repr(sorted(deployment.items()))
        if key not in self._routers:
            if len(self._routers) >= _KEPT_ROUTERS:
                self._routers.pop(next(iter(self._routers)))
            given = {k: deployment[k] for k in ("model", "api_base", "api_key") if deployment[k]}
            self._routers[key] = self._litellm.Router(
                model_list=[
                    {
                        "model_name": deployment["id"],
                        "litellm_params": {**deployment["extra"], **given, "max_retries": 0},
                    }
                ],
                num_retries=0,
                max_fallbacks=0,
                disable_cooldowns=True,
                cache_responses=False,
                enable_pre_call_checks=False,
                set_verbose=False,
            )
        return self._routers[key]

    async def _call(self, number: int, order: Mapping[str, Any]) -> None:
        import httpx

        router = self._router(order["deployment"])
        given = dict(order["body"])
        given["model"] = order["deployment"]["id"]
        given["extra_headers"] = order["headers"]
        given["timeout"] = httpx.Timeout(order["read_timeout_s"], connect=order["connect_timeout_s"])
        async with asyncio.timeout(order["total_timeout_s"]):
            match order["operation"]:
                case "embeddings":
                    given["encoding_format"] = given.get("encoding_format") or "float"
                    await self._tell(_raw(number, await router.aembedding(**given)))
                case "completions":
                    await self._tell(_raw(number, await router.atext_completion(**given)))
                case _ if order["stream"]:
                    given = self._chat(order, given)
                    given |= {"stream": True, "stream_options": {"include_usage": True}}
                    await self._stream(number, await router.acompletion(**given))
                case _:
                    made = await router.acompletion(**self._chat(order, given))
                    usage = _usage(getattr(made, "usage", None))
                    await self._tell(
                        {
                            "id": number,
                            "kind": "whole",
                            "choices": choices_from(made),
                            "usage": usage,
                            "thought_bytes": thought_bytes(made),
                        }
                    )

    def _chat(self, order: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a chat that this vendor knows, so that LiteLLM has nothing to drop."""
        known = self._litellm.get_supported_openai_params(model=order["deployment"]["model"]) or ()
        kept = supported_parameters(given, known)
        return kept | {name: given[name] for name in ("messages", "model", "timeout", "extra_headers")}

    async def _stream(self, number: int, chunks: Any) -> None:
        usage = None
        try:
            async for chunk in chunks:
                usage = _usage(getattr(chunk, "usage", None)) or usage
                await self._wanted[number].acquire()
                await self._tell(
                    {
                        "id": number,
                        "kind": "chunk",
                        "choices": choices_from(chunk),
                        "thought_bytes": thought_bytes(chunk),
                    }
                )
            # LiteLLM ends a stream that was cut with a "stop" of its own; among the chunks it keeps, only a finish
            # reason that came from upstream stands.
            kept = getattr(chunks, "chunks", None) or ()
            complete = any(choice.finish_reason for chunk in kept for choice in chunk.choices)
            # Likewise, it counts by itself what nobody counted; such a figure is not the provider's.
            counted = any(usage_from(getattr(chunk, "usage", None)) for chunk in kept)
            end = {"id": number, "kind": "end", "complete": complete, "usage": usage if counted else None}
            await self._tell(end)
        finally:
            if hasattr(chunks, "aclose"):
                await chunks.aclose()


def _usage(value: Any) -> dict[str, int] | None:
    usage = usage_from(value)
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_prompt_tokens": usage.cached_prompt_tokens,
    }


def _raw(number: int, made: Any) -> dict[str, object]:
    body = made.model_dump(exclude_none=True)
    choices = body.get("choices") or [{}]
    return {
        "id": number,
        "kind": "raw",
        "body": body,
        "usage": _usage(getattr(made, "usage", None)),
        "finish_reason": choices[0].get("finish_reason"),
    }


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, at most a dozen."""
    seen: BaseException | None = error
    for _ in itertools.repeat(None, 12):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__


def _named(error: Exception) -> dict[str, object]:
    """What of a failure may leave: a reason and a number."""
    import aiohttp
    import httpx
    import litellm
    import openai

    causes = list(_causes(error))
    if any(isinstance(e, httpx.ConnectError | httpx.ConnectTimeout | aiohttp.ClientConnectorError) for e in causes):
        return {"reason": "connect"}
    for cause in causes:
        # LiteLLM's own errors carry statuses it made up; those of the clients below it are the upstream's.
        is_clients = isinstance(cause, openai.APIStatusError) and type(cause).__module__.startswith("openai")
        if is_clients or isinstance(cause, httpx.HTTPStatusError):
            response: httpx.Response = cause.response  # type: ignore[attr-defined]  # both kinds have it
            if 400 <= response.status_code <= 599:
                retry_after = response.headers.get("retry-after", "")
                return {"reason": "status", "status": response.status_code, "retry_after": retry_after}
    if any(isinstance(e, TimeoutError | openai.APITimeoutError | httpx.TimeoutException) for e in causes):
        return {"reason": "timeout"}
    if isinstance(error, litellm.UnsupportedParamsError | UnsupportedError):
        return {"reason": "unsupported"}
    return {"reason": "broken"}


def _show_certificate(litellm: Any, egress: Egress) -> None:
    """Makes all of LiteLLM's connections show the gateway's certificate.

    Those it makes by aiohttp, and those of the OpenAI client, would show none.
    """
    import httpx

    shown = [str(file) for file in (egress.client_cert_file, egress.client_key_file) if file is not None]
    litellm.disable_aiohttp_transport = True
    litellm.ssl_certificate = tuple(shown) if len(shown) > 1 else shown[0]
    everything = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    litellm.aclient_session = httpx.AsyncClient(verify=egress.ssl_context(), limits=everything)


async def _main(egress: Egress) -> None:
    loop = asyncio.get_running_loop()
    # Nothing that a library prints may get between the frames.
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    reader = asyncio.StreamReader(limit=2**20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, output)
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    litellm = load_litellm()
    if egress.client_cert_file is not None:
        _show_certificate(litellm, egress)
    await Orders(litellm, writer).run(reader)


def main() -> None:
    """The entry point of `python -m gateway.server.providers.litellm_worker CA CERTIFICATE KEY`; each may be empty."""
    authority, certificate, key = (Path(word) if word else None for word in sys.argv[1:])
    os.nice(_NICENESS)
    asyncio.run(_main(Egress("", authority, certificate, key)))


if __name__ == "__main__":
    main()
