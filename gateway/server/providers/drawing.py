"""What a picture costs before it is drawn, and what may come back of it: data, never an address to fetch it from."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

import orjson

from gateway.contracts import BadRequest
from gateway.server.providers.base import UpstreamRequest, Usage

# Stands for every size or quality that is not named beside it.
ANY: Final = "*"
_AUTO: Final = "auto"
_TOLD: Final = ("size", "quality", "background", "output_format")


def tokens_of(asked: Mapping[str, object], image_tokens: Mapping[str, int]) -> int:
    """The most output tokens one picture is billed, by `size/quality` → tokens. What is not said may become any of them.

    Raises `BadRequest` for a size or quality whose cost nobody knows.
    """
    size, quality = str(asked.get("size", _AUTO)), str(asked.get("quality", _AUTO))
    fitting = [
        tokens
        for (known_size, known_quality), tokens in ((key.split("/"), tokens) for key, tokens in image_tokens.items())
        if size in (known_size, _AUTO) or known_size == ANY
        if quality in (known_quality, _AUTO) or known_quality == ANY
    ]
    if not fitting:
        known = "・".join(f"{key.replace('/', '（')}）" for key in image_tokens)
        raise BadRequest(f"このモデルで描ける大きさ（quality）は {known} です。", param="size")
    return max(fitting)


def drawn(answer: Mapping[str, Any], request: UpstreamRequest, usage: Usage | None) -> bytes | None:
    """The answer written anew from its pictures alone; None when there are none, too many, or no data."""
    pictures = answer.get("data")
    wanted = request.body.get("n", 1)
    if not isinstance(pictures, list) or not isinstance(wanted, int) or not 1 <= len(pictures) <= wanted:
        return None
    if not all(isinstance(p, dict) and _is_data(p.get("b64_json")) for p in pictures):
        return None
    created = answer.get("created")
    told: dict[str, Any] = {
        "created": created if isinstance(created, int) else 0,
        "data": [{"b64_json": p["b64_json"]} for p in pictures],
    }
    told |= {name: answer[name] for name in _TOLD if isinstance(answer.get(name), str)}
    if usage is not None:
        told["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "input_tokens_details": {"text_tokens": usage.prompt_tokens, "image_tokens": 0},
        }
    return orjson.dumps(told)


def _is_data(value: object) -> bool:
    if not isinstance(value, str) or not value:
        return False
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True
