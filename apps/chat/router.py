"""Chat's pages. Every action is a form that works by itself; scripts only make it smoother."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode
from uuid import UUID

import anyio.to_thread
from fastapi import APIRouter, File, Form, Request, UploadFile
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse

from apps.chat import service
from apps.chat.cards import card, cards_for
from apps.chat.service import Chat, Conversation, Finished, Message, Piece, Turn
from apps.sdk import App, AppContext, InvalidInput, NotFound, load_manifest
from apps.sdk.app import HomeItem, HomeParts
from apps.sdk.context import Context
from apps.sdk.dates import JST, local, wareki, when
from apps.sdk.exports import Block, conversation_docx, markdown_tables, plain_text, tables_xlsx
from apps.sdk.intake import read_upload
from apps.sdk.ui.render import render_markdown, where_words

routes = APIRouter()

_DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
MAX_UPLOAD_BYTES = 20 * 1024 * 1024
# How often the page is given what came so far; rendering each piece would cost more than it shows.
_SHOW_EVERY_S = 0.12


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("")
async def new_chat(ctx: Context, card_id: str = "", prompt: str = "", folder: str = "") -> Response:
    """A new conversation: the task cards of the season and the section, not an empty box."""
    chosen = card(card_id)
    text = chosen.prompt if chosen else ""
    if prompt:
        text = next((t for id, _, t in await Chat(ctx).prompts() if str(id) == prompt), text)
    today = local(ctx.now).date()
    due, all_year = cards_for(ctx.actor.section_name, today)
    return await _page(
        ctx,
        None,
        folder=folder,
        due=due,
        all_year=all_year,
        chosen=chosen,
        typed=text,
        prompts=await Chat(ctx).prompts(),
        data_class=chosen.data_class if chosen else "1",
    )


@routes.get("/c/{conversation_id}")
async def conversation_page(ctx: Context, conversation_id: UUID, edit: str = "") -> Response:
    """One conversation; `edit` opens a question for changing."""
    found = await Chat(ctx).open(conversation_id)
    return await _page(ctx, found, edit=edit, typed="", data_class=found.data_class)


@routes.get("/c/{conversation_id}/last")
async def last_answer(ctx: Context, conversation_id: UUID) -> Response:
    """The last message as a fragment: what a page asks for after an answer was stopped."""
    found = await Chat(ctx).open(conversation_id)
    if not found.messages or found.messages[-1].role != "assistant":
        return Response(status_code=204)
    return await ctx.page("_message_only.html", conversation=found, message=found.messages[-1], edit="")


@routes.get("/history")
async def history_page(ctx: Context, request: Request, q: str = "", folder: str = "") -> Response:
    """All conversations, or those with every word of `q`; a fragment for the page's side, a page by itself."""
    chat = Chat(ctx)
    everything = await chat.history()
    shown = [c for c in everything if not folder or c.folder == folder]
    hits = await chat.search(q) if q.strip() else []
    template = "_history.html" if request.headers.get("hx-request") else "history.html"
    return await ctx.page(
        template,
        groups=service.grouped(shown, local(ctx.now)),
        folders=service.folders(everything),
        total=len(everything),
        folder=folder,
        q=q,
        hits=hits,
        conversation=None,
    )


@routes.get("/files/{file_id}")
async def file_page(ctx: Context, file_id: UUID) -> Response:
    """読み取った文を見る: page by page, with what could not be read said first."""
    return await ctx.page("file.html", file=await Chat(ctx).file(file_id))


@routes.get("/models")
async def models_fragment(ctx: Context, data_class: str = "1", model: str = "") -> Response:
    """The choice of models for another weight of data, with why one may not be used."""
    return await ctx.page("_models.html", models=await ctx.models(_class(data_class)), model=model)


# ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.post("/files")
async def upload(ctx: Context, file: Annotated[list[UploadFile], File()]) -> Response:
    """Reads files and keeps them, sealed, until a question takes them along."""
    chat = Chat(ctx)
    read = [await _attach(chat, f) for f in file if f.filename]
    return await ctx.page("_new_files.html", files=read)


@routes.post("/send")
async def send(
    ctx: Context,
    request: Request,
    text: Annotated[str, Form()] = "",
    conversation: Annotated[str, Form()] = "",
    model: Annotated[str, Form()] = "standard",
    data_class: Annotated[str, Form()] = "1",
    folder: Annotated[str, Form()] = "",
    file_ids: Annotated[list[str] | None, Form()] = None,
    file: Annotated[list[UploadFile] | None, File()] = None,
) -> Response:
    """Stores the question and answers it: as a stream for scripts, else in full with a redirect."""
    chat = Chat(ctx)
    ids = [_uuid(i) for i in file_ids or ()]
    ids += [(await _attach(chat, f)).id for f in file or () if f.filename]
    turn = await chat.ask(
        text,
        conversation_id=_uuid(conversation) if conversation else None,
        model=model,
        data_class=_class(data_class),
        files=ids,
    )
    if folder and not conversation:
        await chat.move(turn.conversation.id, folder)
    return await _answered(ctx, request, chat, turn)


@routes.post("/c/{conversation_id}/again")
async def again(
    ctx: Context,
    request: Request,
    conversation_id: UUID,
    question: Annotated[str, Form()] = "",
    answer: Annotated[str, Form()] = "",
    text: Annotated[str | None, Form()] = None,
) -> Response:
    """作り直す (by the answer), 直して送り直す (by the question), and the way on after an answer was cut off."""
    chat = Chat(ctx)
    if answer:
        found = await chat.open(conversation_id)
        before = [m for m in found.messages if m.role == "user" and m.id < _uuid(answer)]
        if not before:
            raise NotFound
        question = str(before[-1].id)
    turn = await chat.ask_again(conversation_id, _uuid(question), text)
    return await _answered(ctx, request, chat, turn)


async def _answered(ctx: AppContext, request: Request, chat: Chat, turn: Turn) -> Response:
    href = f"/apps/chat/c/{turn.conversation.id}"
    if "text/event-stream" not in request.headers.get("accept", ""):
        async with aclosing(chat.answer(turn)) as pieces:
            async for _ in pieces:
                pass
        return RedirectResponse(f"{href}#last", status_code=303)
    question = await ctx.page("_message_only.html", conversation=turn.conversation, message=turn.question, edit="")
    start = {
        "href": href,
        "conversation": str(turn.conversation.id),
        "question": str(turn.question.id),
        "title": turn.conversation.title,
        "html": bytes(question.body).decode(),
    }

    async def events() -> AsyncIterator[bytes]:
        yield _event("start", start)
        so_far: list[str] = []
        shown_at = 0.0
        async with aclosing(chat.answer(turn)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Piece):
                    so_far.append(piece.text)
                    if time.monotonic() - shown_at >= _SHOW_EVERY_S:
                        shown_at = time.monotonic()
                        yield _event("html", {"html": str(render_markdown("".join(so_far)))})
                elif isinstance(piece, Finished):
                    page = await ctx.page(
                        "_message_only.html", conversation=turn.conversation, message=piece.message, edit=""
                    )
                    left = await ctx.remaining()
                    facts = {"html": bytes(page.body).decode(), "left": float(left), "state": piece.message.state}
                    yield _event("done", facts)

    return StreamingResponse(
        events(), media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"}
    )


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


async def _attach(chat: Chat, file: UploadFile) -> service.AttachedFile:
    name = Path(file.filename or "").name[:120] or "資料"
    data = await file.read(MAX_UPLOAD_BYTES + 1)
    if len(data) > MAX_UPLOAD_BYTES:
        raise InvalidInput(
            f"「{name}」は大きすぎます。{MAX_UPLOAD_BYTES // 1024 // 1024}MBまでにしてください。", field="file"
        )
    return await chat.attach(name, await read_upload(name, data), data)


# ── keeping order ────────────────────────────────────────────────────────────────────────────────────────────────


@routes.post("/c/{conversation_id}/rename")
async def rename(ctx: Context, conversation_id: UUID, title: Annotated[str, Form()]) -> Response:
    await Chat(ctx).rename(conversation_id, title)
    return _back(conversation_id, "名前を変えました")


@routes.post("/c/{conversation_id}/pin")
async def pin(ctx: Context, conversation_id: UUID, pinned: Annotated[str, Form()] = "") -> Response:
    await Chat(ctx).pin(conversation_id, pinned=pinned == "1")
    return _back(conversation_id, "固定しました" if pinned == "1" else "固定を外しました")


@routes.post("/c/{conversation_id}/move")
async def move(ctx: Context, conversation_id: UUID, folder: Annotated[str, Form()] = "") -> Response:
    await Chat(ctx).move(conversation_id, folder)
    return _back(conversation_id, f"「{folder}」に移しました" if folder else "フォルダーから出しました")


@routes.get("/c/{conversation_id}/manage")
async def manage(ctx: Context, conversation_id: UUID) -> Response:
    """Name, folder, deletion: with what would be lost named in full."""
    chat = Chat(ctx)
    found = await chat.open(conversation_id)
    return await ctx.page("manage.html", conversation=found, folders=service.folders(await chat.history()))


@routes.post("/c/{conversation_id}/delete")
async def delete(ctx: Context, conversation_id: UUID) -> Response:
    await Chat(ctx).delete(conversation_id)
    return RedirectResponse(f"/apps/chat/deleted/{conversation_id}", status_code=303)


@routes.get("/deleted/{conversation_id}")
async def deleted(ctx: Context, conversation_id: UUID) -> Response:
    if not await Chat(ctx).is_in_trash(conversation_id):
        return RedirectResponse(f"/apps/chat/c/{conversation_id}", status_code=303)
    return await ctx.page("deleted.html", conversation_id=conversation_id)


@routes.post("/c/{conversation_id}/restore")
async def restore(ctx: Context, conversation_id: UUID) -> Response:
    await Chat(ctx).restore(conversation_id)
    return _back(conversation_id, "元に戻しました")


# ── taking away ──────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("/c/{conversation_id}/export")
async def export_page(ctx: Context, conversation_id: UUID, answer: str = "") -> Response:
    """事実確認: the checklist that stands before every export."""
    found, chosen = await _answers(ctx, conversation_id, answer)
    text = "\n".join(m.text for m in chosen)
    return await ctx.page(
        "export.html",
        conversation=found,
        answer=answer,
        items=service.checklist(text),
        missing=None,
        message=chosen[-1],
    )


@routes.post("/c/{conversation_id}/export")
async def export(
    ctx: Context,
    conversation_id: UUID,
    answer: Annotated[str, Form()] = "",
    checked: Annotated[list[str] | None, Form()] = None,
) -> Response:
    """The conversation (or one answer) as docx, once every point is ticked."""
    found, chosen = await _answers(ctx, conversation_id, answer)
    items = service.checklist("\n".join(m.text for m in chosen))
    missing = [i for i in items if i not in (checked or ())]
    if missing:
        return await ctx.page(
            "export.html",
            status=422,
            conversation=found,
            answer=answer,
            items=items,
            missing=missing,
            message=chosen[-1],
        )
    shown = chosen if answer else [m for m in found.messages if m.text]
    blocks = [_block(m) for m in shown]
    today = wareki(local(ctx.now).date())
    footer = f"AIの下書きを職員が確認して書き出しました（{today}、{ctx.actor.section_name or ctx.actor.tenant_name}）"
    document = await anyio.to_thread.run_sync(partial(conversation_docx, found.title, blocks, footer=footer))
    return _download(document, f"{found.title}.docx", _DOCX)


@routes.get("/c/{conversation_id}/tables.xlsx")
async def export_tables(ctx: Context, conversation_id: UUID, answer: str = "") -> Response:
    """The tables of an answer, one sheet each."""
    found, chosen = await _answers(ctx, conversation_id, answer)
    texts = [m.text for m in chosen] + [c.markdown for m in found.messages for c in m.computed if not answer]
    if not any(markdown_tables(t) for t in texts):
        raise NotFound("この回答に表はありません。")
    return _download(await anyio.to_thread.run_sync(tables_xlsx, texts), f"{found.title}.xlsx", _XLSX)


@routes.get("/c/{conversation_id}/text/{message_id}")
async def as_text(ctx: Context, conversation_id: UUID, message_id: UUID) -> Response:
    """An answer as plain text, for copying."""
    found = await Chat(ctx).open(conversation_id)
    message = next((m for m in found.messages if m.id == message_id), None)
    if message is None:
        raise NotFound
    return PlainTextResponse(plain_text(message.text))


@routes.get("/prompts")
async def prompts_page(ctx: Context) -> Response:
    return await ctx.page("prompts.html", prompts=await Chat(ctx).prompts())


@routes.get("/c/{conversation_id}/prompt/{message_id}")
async def save_prompt_page(ctx: Context, conversation_id: UUID, message_id: UUID) -> Response:
    """A question as the person's own prompt, to be named and trimmed first."""
    found = await Chat(ctx).open(conversation_id)
    at = next((i for i, m in enumerate(found.messages) if m.id == message_id), None)
    if at is None:
        raise NotFound
    source = found.messages[at]
    if source.role == "assistant" and at > 0:
        source = found.messages[at - 1]
    return await ctx.page("save_prompt.html", conversation=found, text=source.text, title=service.title_of(source.text))


@routes.post("/prompts")
async def save_prompt(ctx: Context, text: Annotated[str, Form()], title: Annotated[str, Form()] = "") -> Response:
    if not text.strip():
        raise InvalidInput("プロンプトの文を書いてください。", field="text")
    await Chat(ctx).save_prompt(title, text)
    return _toast(RedirectResponse("/apps/chat/prompts", status_code=303), "プロンプトを保存しました")


@routes.post("/prompts/{prompt_id}/delete")
async def delete_prompt(ctx: Context, prompt_id: UUID) -> Response:
    await Chat(ctx).delete_prompt(prompt_id)
    return _toast(RedirectResponse("/apps/chat/prompts", status_code=303), "プロンプトを消しました")


@routes.get("/c/{conversation_id}/report/{message_id}")
async def report_page(ctx: Context, conversation_id: UUID, message_id: UUID) -> Response:
    """誤りを報告: what is sent is shown, the text goes only when it is ticked."""
    found = await Chat(ctx).open(conversation_id)
    message = next((m for m in found.messages if m.id == message_id), None)
    if message is None:
        raise NotFound
    return await ctx.page("report.html", conversation=found, message=message)


@routes.post("/c/{conversation_id}/report/{message_id}")
async def report(
    ctx: Context,
    conversation_id: UUID,
    message_id: UUID,
    note: Annotated[str, Form()] = "",
    with_content: Annotated[str, Form()] = "",
) -> Response:
    found = await Chat(ctx).open(conversation_id)
    at = next((i for i, m in enumerate(found.messages) if m.id == message_id), None)
    if at is None:
        raise NotFound
    told = [f"困ったこと：{note.strip()}"] if note.strip() else []
    if with_content:
        told += [
            f"【{'回答' if m.role == 'assistant' else '質問'}】\n{m.text}"
            for m in found.messages[max(0, at - 1) : at + 1]
        ]
    await ctx.report(
        page=f"/apps/chat/c/{conversation_id}",
        kind="wrong_answer",
        problem_number=found.messages[at].call_id,
        content="\n\n".join(told) or None,
    )
    return _back(conversation_id, "町の管理者に知らせました")


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _page(ctx: AppContext, found: Conversation | None, **facts: object) -> Response:
    chat = Chat(ctx)
    everything = await chat.history()
    folder = str(facts.pop("folder", "") or (found.folder if found else ""))
    shown = {
        "conversation": found,
        "groups": service.grouped(everything, local(ctx.now)),
        "folders": service.folders(everything),
        "total": len(everything),
        "folder": folder,
        "q": "",
        "hits": [],
        "models": await ctx.models(str(facts["data_class"])),
        "model": found.model if found else "standard",
        "left": await ctx.remaining(),
        "send_key": ctx.preferences.get("send_key", ""),
        "edit": "",
        "due": (),
        "all_year": (),
        "chosen": None,
        "prompts": [],
    }
    return await ctx.page("chat.html", **(shown | facts))


async def _answers(ctx: AppContext, conversation_id: UUID, answer: str) -> tuple[Conversation, list[Message]]:
    found = await Chat(ctx).open(conversation_id)
    chosen = [m for m in found.answers if not answer or str(m.id) == answer]
    if not chosen:
        raise NotFound("書き出せる回答がありません。")
    return found, chosen


def _block(message: Message) -> Block:
    if message.role == "user":
        files = "、".join(f.name for f in message.files)
        return Block("質問", message.text, f"付けた資料：{files}" if files else "")
    meta = where_words(message.zone, message.zone_owner, message.country)
    at = local(message.at)
    return Block("回答", message.text, f"{wareki(at.date())} {at:%-H:%M}　{meta}")


def _class(value: str) -> str:
    if value not in ("1", "2", "3C"):
        raise InvalidInput("情報の重さを選んでください。", field="data_class")
    return value


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise NotFound from None


def _toast(response: RedirectResponse, words: str) -> RedirectResponse:
    response.set_cookie("kumiai_toast", quote(words), max_age=20, httponly=True, samesite="lax")
    return response


def _back(conversation_id: UUID, words: str) -> RedirectResponse:
    return _toast(RedirectResponse(f"/apps/chat/c/{conversation_id}", status_code=303), words)


def _download(data: bytes, name: str, media_type: str) -> Response:
    safe = "".join(c if c not in '\\/:*?"<>|\r\n' else "＿" for c in name)
    return Response(
        data, media_type=media_type, headers={"content-disposition": f"attachment; filename*=UTF-8''{quote(safe)}"}
    )


async def _home(ctx: AppContext) -> HomeParts:
    """Cards of the season, cards for all year, the last three conversations."""
    today: date = ctx.now.astimezone(JST).date()
    due, all_year = cards_for(ctx.actor.section_name, today)
    items = [
        HomeItem(
            c.title,
            f"/apps/chat?{urlencode({'card_id': c.id})}",
            c.lead,
            "i-doc",
            f"{today.month}月の仕事" if c.months else "",
            c.minutes,
            c.data_class,
        )
        for c in (*due, *all_year)
    ]
    recent = (await Chat(ctx).history())[:3]
    resume = tuple(
        HomeItem(c.title, f"/apps/chat/c/{c.id}", f"チャット　{when(c.updated_at, ctx.now)}", "i-chat") for c in recent
    )
    return HomeParts(tuple(items[: len(due)])[:6], tuple(items[len(due) :]), resume)


app = App(manifest=load_manifest(Path(__file__).parent), router=routes, folder=Path(__file__).parent, home=_home)
