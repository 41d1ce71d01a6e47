"""Work that takes longer than a page may: the page is sent at once and goes on telling how far it is.

Plain HTML that arrives bit by bit, so it works without scripts. The work belongs to the process and is finished also
when the reader leaves.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import structlog
from fastapi import Request
from markupsafe import escape
from starlette.responses import HTMLResponse, Response, StreamingResponse

from apps.host.requests import problem_number, render, services
from apps.sdk.office import Progress
from observability.problems import Problem

log = structlog.get_logger("portal")

Facts = Mapping[str, object]
# What ends sooner is answered as an ordinary page.
QUICK_S = 0.5
TELL_EVERY_S = 1.0
_MARK = "<!-- progress -->"


async def work_page(
    request: Request, title: str, work: Callable[[Progress], Awaitable[Facts]], *, then: str
) -> Response:
    """Starts `work` and shows it. then: the fragment that its facts fill.

    Raises what `work` raises while it is quick; later the page itself tells the problem.
    """
    progress = Progress()
    done: asyncio.Future[Facts] = asyncio.get_running_loop().create_future()
    services(request).work.create_task(_finish(request, work, progress, done))
    await asyncio.wait({done}, timeout=QUICK_S)
    if done.done():
        return HTMLResponse(render(request, "ui/work.html", work_title=title, fragment=then, **done.result()))
    head, tail = render(request, "ui/work.html", work_title=title, fragment="").split(_MARK)

    async def told() -> AsyncIterator[str]:
        yield head
        began = time.monotonic()
        while not done.done():
            words = f"{progress.words}（{time.monotonic() - began:.0f}秒）"
            yield f'<p class="k-work__now">{escape(words)}</p>\n'
            await asyncio.wait({done}, timeout=TELL_EVERY_S)
        try:
            yield render(request, then, **done.result())
        except Problem as problem:
            yield render(request, "ui/_problem.html", problem=problem, number=problem_number(request))
        yield tail

    return StreamingResponse(told(), media_type="text/html")


async def _finish(
    request: Request,
    work: Callable[[Progress], Awaitable[Facts]],
    progress: Progress,
    done: "asyncio.Future[Facts]",
) -> None:
    """The HTTP edge of work that outlives its request: nothing it raises may reach the process."""
    try:
        done.set_result(await work(progress))
    except Problem as problem:
        done.set_exception(problem)
    except Exception:  # as in main: a bug becomes a page with a number
        log.error("work_failed", path=request.url.path, number=problem_number(request), exc_info=True)
        done.set_exception(Problem("こちらの不具合です。記録しましたので、問合せ番号を事務局に知らせてください。"))
    # A page that was left behind never asks for it.
    done.exception()
