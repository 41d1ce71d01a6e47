"""Every failure we expect is a `Problem`: a stable URN, a status and a Japanese title.

It is raised where it is known and rendered in one place per edge: problem+json, a page, an htmx fragment, or on
`/v1` OpenAI's error shape.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import ClassVar

type_prefix = "urn:problem:"


class Problem(Exception):
    """An expected failure.

    `type` is a URN that never changes, `title` says in Japanese what happened, `detail` what to do next.
    `extensions` are machine-readable facts (counts, seconds, field names), never content, tokens or names.
    """

    type: ClassVar[str] = "urn:problem:kumiai:unexpected"
    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    title: ClassVar[str] = "処理を続けられませんでした"
    # For the operator, at the command line and in the log, never on a page: addresses, settings, what a server said.
    hint: str = ""

    def __init__(self, detail: str = "", **extensions: str | int | float | bool | list[str] | None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.extensions: Mapping[str, str | int | float | bool | list[str] | None] = extensions

    @property
    def code(self) -> str:
        """The last part of the URN with underscores: what `/v1` clients see as `error.code`."""
        return self.type.rsplit(":", 1)[-1].replace("-", "_")

    @property
    def may_be_retried(self) -> bool:
        """Whether a client may ask again by itself: not where that cannot help, nor where it would be paid for twice."""
        return True

    @property
    def retry_after_s(self) -> int | None:
        """Whole seconds for `Retry-After`, if the problem knows when trying again makes sense."""
        value = self.extensions.get("retry_after_s")
        return int(value) if isinstance(value, int | float) else None

    def as_json(self, trace_id: str | None = None) -> dict[str, object]:
        """The problem+json body of RFC 9457; `trace_id` is the number a clerk can read out (問合せ番号)."""
        body: dict[str, object] = {
            "type": self.type,
            "title": self.title,
            "status": int(self.status),
            "detail": self.detail,
        }
        if trace_id:
            body["trace_id"] = trace_id
        body.update({k: v for k, v in self.extensions.items() if v is not None})
        return body


class NotFound(Problem):
    """Also what another tenant's object looks like: never 403, so that ids cannot be probed."""

    type = "urn:problem:kumiai:not-found"
    status = HTTPStatus.NOT_FOUND
    title = "見つかりませんでした"


class NotSignedIn(Problem):
    type = "urn:problem:kumiai:not-signed-in"
    status = HTTPStatus.UNAUTHORIZED
    title = "サインインが必要です"


class NotAllowed(Problem):
    type = "urn:problem:kumiai:not-allowed"
    status = HTTPStatus.FORBIDDEN
    title = "この操作をする権限がありません"


class InvalidInput(Problem):
    """Malformed input; `field` or `row` in the extensions names the place."""

    type = "urn:problem:kumiai:invalid-input"
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    title = "入力を確認してください"


class Conflict(Problem):
    type = "urn:problem:kumiai:conflict"
    status = HTTPStatus.CONFLICT
    title = "ほかの操作と重なりました"


class TooManyRequests(Problem):
    type = "urn:problem:kumiai:too-many-requests"
    status = HTTPStatus.TOO_MANY_REQUESTS
    title = "短い時間に操作が集中しました"


class Unavailable(Problem):
    type = "urn:problem:kumiai:unavailable"
    status = HTTPStatus.SERVICE_UNAVAILABLE
    title = "一時的に使えません"
