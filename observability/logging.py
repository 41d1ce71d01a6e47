"""JSON logs: events with ids and counts, never content, tokens, names or addresses."""

import json
import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import orjson
import structlog

# Keys that could carry what a person wrote. A value under one of them is dropped, not trusted to be harmless.
CONTENT_KEYS = frozenset(
    {"prompt", "content", "messages", "text", "input", "output", "body", "answer", "question", "password", "token", "secret",
     "authorization", "cookie", "email", "name"}
)  # fmt: skip


def drop_content(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Removes content-bearing keys from a log event before it is rendered."""
    for key in CONTENT_KEYS & event.keys():
        event[key] = "[dropped]"
    return event


def configure_logging(*, level: str = "INFO", process: str, to: TextIO | None = None) -> None:
    """Sends structlog and the standard library's loggers to stderr, or `to`, as one JSON object a line."""
    stream = to or sys.stderr
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        drop_content,
    ]
    as_json: list[structlog.types.Processor] = [
        _exception_without_values,
        structlog.processors.JSONRenderer(serializer=_dumps),
    ]
    # Our own events go straight to the stream: a call has one, and on the way through `logging` it costs three times
    # as much.
    structlog.configure(
        processors=[*shared, *as_json],
        logger_factory=structlog.WriteLoggerFactory(stream),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *as_json],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    structlog.contextvars.bind_contextvars(process=process)
    # Access logs carry paths with search terms; our own request event carries the route instead.
    logging.getLogger("uvicorn.access").disabled = True
    for noisy in ("httpx", "httpcore", "LiteLLM", "sqlalchemy.engine"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _dumps(event: object, **options: Any) -> str:
    try:
        return orjson.dumps(event, default=options.get("default")).decode()
    except TypeError:
        # A number beyond 64 bits or half a character, as a caller may send: a line of the log breaks off nobody's work.
        return json.dumps(event, default=options.get("default"))


def _exception_without_values(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Renders where an exception happened, not its message: messages of parsers and drivers quote the input."""
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    if isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    if isinstance(info, tuple) and info[0] is not None:
        frames = []
        tb = info[2]
        while tb is not None:
            frames.append(f"{tb.tb_frame.f_globals.get('__name__', '?')}:{tb.tb_lineno}")
            tb = tb.tb_next
        event["exception"] = {"type": info[0].__qualname__, "at": frames[-8:]}
    return event
