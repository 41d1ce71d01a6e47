"""Chat's pages. Every action is a form that works by itself; scripts only make it smoother."""

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote, urlencode
from uuid import UUID

import anyio
import anyio.to_thread
from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse

from apps.chat import service
from apps.chat.cards import WEIGHTS, all_cards, card, cards_for
from apps.chat.checklist import checklist
from apps.chat.service import Begun, Chat, Conversation, Finished, Message, Piece, Turn, Waiting
from apps.sdk import App, AppContext, Conflict, InvalidInput, NotFound, Problem, load_manifest
from apps.sdk.app import HomeItem, HomeParts
from apps.sdk.context import Context, ModelChoice
from apps.sdk.dates import JST, local, wareki, when
from apps.sdk.exports import Block, conversation_docx, markdown_tables, plain_text, tables_xlsx
from apps.sdk.intake import check_hearing, is_recording, read_upload
from apps.sdk.live import Live
from apps.sdk.ui.render import GrowingMarkdown, where_words

routes = APIRouter()

_DOCX: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_XLSX: Final = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
MAX_UPLOAD_BYTES: Final = 20 * 1024 * 1024
# An hour of a meeting as telephones keep it.
MAX_RECORDING_BYTES: Final = 60 * 1024 * 1024
# A few sentences are heard before the page is answered; for more it asks again.
_HEARD_AT_ONCE_S: Final = 3.0
# How often the page is given what came so far; sending each piece would cost more than it shows.
_SHOW_EVERY_S: Final = 0.1
# Beside a conversation stands what was used last; the rest is on the history's own page.
_BESIDE: Final = 40
_PER_PAGE: Final = 100
# Rows of a table on a file's page.
_MAX_ROWS: Final = 500

# What the button is called that sends a question, and one that was changed.
SEND_WORDS: Final = "送る"
SEND_AGAIN_WORDS: Final = "直して送り直す"

Kind = Literal["docx", "xlsx"]


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("")
async def new_chat(ctx: Context, card_id: str = "", prompt: str = "", folder: str = "") -> Response:
    """A new conversation: the task cards of the season and the section, not an empty box."""
    chosen = card(card_id)
    prompts = await Chat(ctx).prompts()
    text = chosen.prompt if chosen else ""
    saved = next((p for p in prompts if str(p.id) == prompt), None)
    if saved is not None:
        text = saved.text
    return await _page(
        ctx,
        None,
        folder=folder,
        chosen=chosen,
        saved=saved,
        typed=text,
        prompts=prompts,
        data_class=chosen.data_class if chosen else ctx.default_class,
    )


@routes.get("/c/{conversation_id}")
async def conversation_page(ctx: Context, conversation_id: UUID, edit: str = "") -> Response:
    """One conversation; `edit` opens a question for changing."""
    found = await Chat(ctx).open(conversation_id)
    question = next((m for m in reversed(found.messages) if m.role == "user"), None)
    coming = None if question is None or _coming(ctx, found, question) is None else question
    return await _page(ctx, found, edit=edit, coming=coming)


@routes.get("/c/{conversation_id}/last")
async def last_answer(ctx: Context, conversation_id: UUID, after: str = "") -> Response:
    """The answer to the last question as a fragment: what a page asks for after it was stopped; empty until it is
    stored. `after` is that question, lest an answer that was replaced be taken for the new one."""
    found = await Chat(ctx).open(conversation_id)
    last = found.messages[-1] if found.messages else None
    if last is None or last.role != "assistant" or last.is_replaced:
        return Response(status_code=204)
    if after and str(found.question_of(last.id).id) != after:
        return Response(status_code=204)
    return await _message_fragment(ctx, found, last)


@routes.get("/c/{conversation_id}/live")
async def live_answer(ctx: Context, conversation_id: UUID, question: str = "") -> Response:
    """The answer that is being made to a question, for a page that lost its connection; 204 when none is.

    One that another process began, which may be gone, is taken up from the gateway.
    """
    found = await Chat(ctx).open(conversation_id)
    live = _coming(ctx, found, found.find(_uuid(question)))
    return Response(status_code=204) if live is None else _stream(_told(ctx, found, live))


@routes.post("/c/{conversation_id}/stop")
async def stop_answer(
    ctx: Context, conversation_id: UUID, question: Annotated[str, Form()] = "", call_id: Annotated[str, Form()] = ""
) -> Response:
    """停止: what came so far is kept."""
    found = await Chat(ctx).open(conversation_id)
    live = ctx.live.find(found.find(_uuid(question)).id)
    if live is not None:
        live.stop()
    elif call_id:
        # Another process makes it.
        await ctx.gateway.stop(str(_uuid(call_id)))
    return Response(status_code=204)


@routes.get("/c/{conversation_id}/around")
async def around(ctx: Context, conversation_id: UUID) -> Response:
    """What stands around a conversation and changes with an answer: the history, the head, what is left."""
    chat = Chat(ctx)
    found = await chat.open(conversation_id)
    everything = await chat.history()
    return await ctx.page(
        "_around.html",
        **_history_facts(ctx, everything, everything[:_BESIDE], found.folder),
        **_nothing_found(),
        conversation=found,
        chosen=None,
        saved=None,
        beside=True,
        more=max(0, len(everything) - _BESIDE),
        left=await ctx.remaining(),
    )


@routes.get("/history")
async def history_page(
    ctx: Context, request: Request, q: str = "", folder: str = "", page: Annotated[int, Query(ge=1)] = 1
) -> Response:
    """All conversations, or those with every word of `q`; a fragment for the page's side, a page by itself."""
    chat = Chat(ctx)
    is_fragment = bool(request.headers.get("hx-request"))
    everything = await chat.history()
    shown = [c for c in everything if not folder or c.folder == folder]
    hits, unread = await chat.search(q) if q.strip() else ([], 0)
    start = 0 if is_fragment else (page - 1) * _PER_PAGE
    window = shown[start : start + (_BESIDE if is_fragment else _PER_PAGE)]
    return await ctx.page(
        "_history.html" if is_fragment else "history.html",
        **_history_facts(ctx, everything, window, folder) | {"q": q.strip(), "hits": hits, "unread": unread},
        conversation=None,
        beside=is_fragment,
        more=len(shown) - start - len(window),
        kept_words=ctx.kept_words,
        page=page,
    )


@routes.get("/trash")
async def trash_page(ctx: Context) -> Response:
    """What was deleted within the last 30 days, to be brought back."""
    return await ctx.page("trash.html", conversations=await Chat(ctx).trash())


@routes.get("/models")
async def models_fragment(ctx: Context, data_class: str = "", model: str = "") -> Response:
    """The choice of models for another weight of data, with why one may not be used."""
    models, problem = await _models(ctx, _class(ctx, data_class))
    return await ctx.page("_models.html", models=models, models_problem=problem, model=model)


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.post("/files")
async def upload(ctx: Context, file: Annotated[list[UploadFile], File()]) -> Response:
    """Reads files and keeps them, sealed, until a question takes them along."""
    chat = Chat(ctx)
    read = [await _attach(ctx, chat, f) for f in file if f.filename]
    return await _files_fragment(ctx, read)


@routes.get("/files")
async def waiting_files(ctx: Context, ids: str = "") -> Response:
    """The files of a draft that is taken up again, as far as they are still there."""
    chat = Chat(ctx)
    found = []
    for text in [t for t in ids.split(",") if t][: service.MAX_FILES]:
        try:
            found.append(await chat.file(_uuid(text)))
        except NotFound:
            continue
    return await _files_fragment(ctx, found)


@routes.get("/files/{file_id}")
async def file_page(ctx: Context, file_id: UUID) -> Response:
    """読み取った文を見る: page by page, with what could not be read said first."""
    chat = Chat(ctx)
    read = await chat.read(file_id)
    conversation = await chat.conversation_of(read.question_id) if read.question_id else None
    return await ctx.page(
        "file.html",
        read=read,
        most=_MAX_ROWS,
        conversation=conversation,
        before=await chat.words_before(file_id),
    )


@routes.get("/files/{file_id}/correct")
async def correct_page(ctx: Context, request: Request, file_id: UUID) -> Response:
    """文を直す: what was read in a picture or heard in a recording, before it is sent."""
    return await _correct_form(ctx, request, await Chat(ctx).correctable(file_id))


@routes.post("/files/{file_id}/correct")
async def correct(
    ctx: Context,
    request: Request,
    file_id: UUID,
    text: Annotated[str, Form()] = "",
    version: Annotated[int, Form()] = 0,
    take_back: Annotated[str, Form()] = "",
) -> Response:
    """Keeps the words, or takes them back; scripts get the file as the question box shows it."""
    chat = Chat(ctx)
    read = await chat.correctable(file_id)
    try:
        if take_back:
            file = await chat.take_back(file_id, version=version)
        else:
            file = await chat.correct(file_id, text, version=version)
    except (InvalidInput, Conflict) as problem:
        if _is_script(request):
            raise
        return await _correct_form(ctx, request, read, typed=text, version=version, problem=problem)
    if _is_script(request):
        return await _files_fragment(ctx, [file])
    words = "読み取ったままの文に戻しました" if take_back else "直した文を保存しました"
    return _toast(RedirectResponse(f"/apps/chat/files/{file_id}", status_code=303), words)


@routes.get("/files/{file_id}/original")
async def original_file(ctx: Context, file_id: UUID) -> Response:
    """The file as it was attached; always as a download, whatever it claims to be."""
    name, data = await Chat(ctx).original(file_id)
    return _download(data, name, "application/octet-stream")


# ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.post("/send")
async def send(
    ctx: Context,
    request: Request,
    text: Annotated[str, Form()] = "",
    conversation: Annotated[str, Form()] = "",
    model: Annotated[str, Form()] = "standard",
    data_class: Annotated[str, Form()] = "",
    folder: Annotated[str, Form()] = "",
    card_id: Annotated[str, Form()] = "",
    file_ids: Annotated[list[str] | None, Form()] = None,
    photos: Annotated[list[str] | None, Form()] = None,
    file: Annotated[list[UploadFile] | None, File()] = None,
    way: Annotated[Literal["", "mask", "onprem", "cancel"], Form()] = "",
    told: Annotated[str, Form(max_length=400)] = "",
) -> Response:
    """Stores the question and answers it: as a stream for scripts, else in full with a redirect.

    First the guard is asked what is in it. If that calls for a decision nothing is stored: the ways to send it are
    shown, and the one that is chosen comes back as `way`. What is only told comes back as `told` when it is sent again.
    """
    chat = Chat(ctx)
    ids = [_uuid(i) for i in file_ids or ()]
    # 文字だけ送る is an empty one.
    shown = frozenset(_uuid(i) for i in photos or () if i)
    conversation_id = _uuid(conversation) if conversation else None
    try:
        ids += [(await _attach(ctx, chat, f)).id for f in file or () if f.filename]
        for unasked in shown.difference(ids):
            # One that was unticked stays here; somebody else's is not there at all.
            await chat.file(unasked)
        data_class = _class(ctx, data_class)
        if way == "onprem":
            model, data_class = _in_house(data_class)
        look = None
        if way != "cancel":
            look = await chat.look(
                text,
                conversation_id=conversation_id,
                model=model,
                data_class=data_class,
                files=ids,
                photos=shown,
                told=told.split(),
            )
        if way == "cancel" or _is_held(look, way):
            if look is not None and _wants_stream(request):
                return await _guard_fragment(ctx, look, model, data_class)
            found = await _still_there(chat, conversation_id)
            return await _page(
                ctx,
                found,
                typed=text,
                folder=folder,
                chosen=card(card_id),
                data_class=data_class,
                model=model,
                waiting=[replace(await chat.file(i), as_photo=i in shown) for i in ids],
                look=look,
                asked=await _asked(ctx, model, data_class, look) if look else None,
            )
        turn = await chat.ask(
            text,
            conversation_id=conversation_id,
            model=look.masked_by if look and look.masked_by else model,
            data_class=data_class,
            files=ids,
            card=card(card_id),
            folder=folder,
            mask=way == "mask",
            lighten=look is not None and bool(look.masked_by),
            photos=shown,
            told=() if way == "mask" else told.split(),
        )
    except Problem as problem:
        if _wants_stream(request):
            raise
        # Nobody should write a text twice: the page comes back with all that was typed and read.
        found = await _still_there(chat, conversation_id)
        return await _page(
            ctx,
            found,
            status=int(problem.status),
            typed=text,
            folder=folder,
            chosen=card(card_id),
            data_class=data_class if data_class in WEIGHTS else ctx.default_class,
            waiting=[replace(await chat.file(i), as_photo=i in shown) for i in ids],
            problem=problem,
        )
    return await _answered(ctx, request, chat, turn)


@routes.post("/c/{conversation_id}/again")
async def again(
    ctx: Context,
    request: Request,
    conversation_id: UUID,
    question: Annotated[str, Form()] = "",
    answer: Annotated[str, Form()] = "",
    text: Annotated[str | None, Form()] = None,
    model: Annotated[str, Form()] = "",
    data_class: Annotated[str, Form()] = "",
    way: Annotated[Literal["", "mask", "onprem", "cancel"], Form()] = "",
    told: Annotated[str, Form(max_length=400)] = "",
) -> Response:
    """作り直す (by the answer), 直して送り直す (by the question), and the way on after an answer was cut off.

    Other words are looked at as `send` looks at a new question, before anything of the conversation is changed for them.
    """
    chat = Chat(ctx)
    found = await chat.open(conversation_id)
    asked_id = found.question_of(_uuid(answer)).id if answer else _uuid(question)
    data_class = _class(ctx, data_class) if data_class else found.data_class
    if way == "onprem":
        model, data_class = _in_house(data_class)
    look = None
    if text is not None:
        model = model or found.model
        if way != "cancel":
            look = await chat.look_again(found, asked_id, text, model=model, data_class=data_class, told=told.split())
        if way == "cancel" or _is_held(look, way):
            if look is not None and _wants_stream(request):
                return await _guard_fragment(ctx, look, model, data_class, send_words=SEND_AGAIN_WORDS)
            return await _page(
                ctx,
                found,
                edit=str(asked_id),
                edited=text,
                look=look,
                asked=await _asked(ctx, model, data_class, look) if look else None,
                send_words=SEND_AGAIN_WORDS,
            )
    turn = await chat.ask_again(
        conversation_id,
        asked_id,
        text,
        model=look.masked_by if look and look.masked_by else model,
        data_class=data_class,
        mask=way == "mask",
        lighten=look is not None and bool(look.masked_by),
        told=() if way == "mask" else told.split(),
    )
    return await _answered(ctx, request, chat, turn)


@routes.post("/c/{conversation_id}/choose")
async def choose_answer(ctx: Context, conversation_id: UUID, answer: Annotated[str, Form()] = "") -> Response:
    """Back to an answer that was made anew."""
    await Chat(ctx).choose_answer(conversation_id, _uuid(answer))
    return _back(conversation_id, "前の回答に戻しました", "#last")


async def _answered(ctx: AppContext, request: Request, chat: Chat, turn: Turn) -> Response:
    href = f"/apps/chat/c/{turn.conversation.id}"
    if not _wants_stream(request):
        async with aclosing(chat.answer(turn)) as pieces:
            async for _ in pieces:
                pass
        return RedirectResponse(f"{href}#last", status_code=303)
    question = await _message_fragment(ctx, turn.conversation, turn.question)
    start = {
        "href": href,
        "conversation": str(turn.conversation.id),
        "question": str(turn.question.id),
        "title": turn.conversation.title,
        "data_class": turn.conversation.data_class,
        "sent_as": turn.data_class,
        "model": turn.model,
        "html": bytes(question.body).decode(),
    }

    async def events() -> AsyncIterator[bytes]:
        yield _event("start", start)
        live = ctx.live.start(turn.question.id, chat.answer(turn))
        async for event in _told(ctx, turn.conversation, live):
            yield event

    return _stream(events())


def _coming(ctx: AppContext, conversation: Conversation, question: Message) -> Live[Any] | None:
    """The answer under way to a question, taken up here where no other page of this process has it."""
    live = ctx.live.find(question.id)
    if live is None and conversation.coming == question:
        live = ctx.live.start(question.id, Chat(ctx).take_up(conversation))
    return live


async def _told(ctx: AppContext, conversation: Conversation, live: Live[Any]) -> AsyncIterator[bytes]:
    """An answer under way as the page is told of it, from its beginning. Without a `done` it was stopped."""
    answer = GrowingMarkdown()
    shown_at = 0.0
    async with aclosing(live.follow()) as pieces:
        async for piece in pieces:
            if isinstance(piece, Piece):
                answer.add(piece.text)
                if time.monotonic() - shown_at >= _SHOW_EVERY_S:
                    shown_at = time.monotonic()
                    first, blocks = answer.changed()
                    yield _event("blocks", {"from": first, "blocks": blocks})
            elif isinstance(piece, Begun):
                yield _event("call", {"id": piece.call_id})
            elif isinstance(piece, Waiting):
                yield _event("queue", {"ahead": piece.ahead})
            elif isinstance(piece, Finished):
                page = await _message_fragment(ctx, conversation, piece.message)
                yield _event("done", {"html": bytes(page.body).decode(), "state": piece.message.state})


def _stream(events: AsyncIterator[bytes]) -> Response:
    return StreamingResponse(
        events, media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"}
    )


def _in_house(data_class: str) -> tuple[str, str]:
    """The model and the weight of 庁内のAIで送る."""
    return "onprem", max(data_class, "3C", key=WEIGHTS.index)


def _is_held(look: service.Look | None, way: str) -> bool:
    """Whether a question stays here until its way is chosen."""
    return look is not None and not (way == "mask" and look.outlook.can_mask)


async def _guard_fragment(
    ctx: AppContext, look: service.Look, model: str, data_class: str, *, send_words: str = SEND_WORDS
) -> Response:
    asked = await _asked(ctx, model, data_class, look)
    return await ctx.page("_guard.html", look=look, asked=asked, send_words=send_words)


async def _asked(ctx: AppContext, model: str, data_class: str, look: service.Look) -> ModelChoice | None:
    """The model a question was meant for, or that may have it masked, to tell where it would be processed."""
    models, _ = await _models(ctx, service.MASKED_WEIGHT if look.masked_by else data_class)
    return next((m for m in models if m.alias == (look.masked_by or model)), None)


async def _still_there(chat: Chat, conversation_id: UUID | None) -> Conversation | None:
    if conversation_id is None:
        return None
    try:
        return await chat.open(conversation_id)
    except NotFound:
        return None


async def _correct_form(
    ctx: AppContext,
    request: Request,
    read: service.ReadFile,
    *,
    typed: str | None = None,
    version: int | None = None,
    problem: Problem | None = None,
) -> Response:
    return await _panel(
        ctx,
        request,
        "correct",
        status=int(problem.status) if problem else 200,
        read=read,
        text=read.words if typed is None else typed,
        version=read.version if version is None else version,
        most=service.MAX_MATERIAL_CHARACTERS,
        problem=problem,
    )


def _is_script(request: Request) -> bool:
    return request.headers.get("kumiai-request") == "fetch"


def _wants_stream(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


async def _message_fragment(ctx: AppContext, conversation: Conversation, message: Message) -> Response:
    """A message by itself; a failed one with the models that may be tried instead."""
    models: Sequence[ModelChoice] = ()
    if message.state == "failed":
        models, _ = await _models(ctx, conversation.sent_as)
    return await ctx.page(
        "_message_only.html",
        conversation=conversation,
        message=message,
        models=models,
        **await _message_words(ctx, [message]),
    )


async def _files_fragment(ctx: AppContext, files: Sequence[service.AttachedFile]) -> Response:
    return await ctx.page("_new_files.html", files=files, plain=False, seeing=await _seeing(ctx, files))


async def _seeing(ctx: AppContext, files: Sequence[service.AttachedFile]) -> list[str]:
    """Names of the models to which photographs among these files may go as such."""
    if not any(f.is_photo for f in files):
        return []
    models, _ = await _models(ctx, service.UNSURE_WEIGHT)
    return [m.name for m in models if m.sees and not m.why_not]


async def _attach(ctx: AppContext, chat: Chat, file: UploadFile) -> service.AttachedFile:
    name = Path(file.filename or "").name[:120] or "資料"
    data = await file.read(MAX_RECORDING_BYTES + 1)
    is_sound = is_recording(data)
    limit_bytes = MAX_RECORDING_BYTES if is_sound else MAX_UPLOAD_BYTES
    if len(data) > limit_bytes:
        raise InvalidInput(
            f"「{name}」は大きすぎます。{limit_bytes // 1024 // 1024}MBまでにしてください。", field="file"
        )
    if not is_sound:
        return await chat.attach(name, await read_upload(name, data), data)
    ear = await chat.ear()
    if not ear:
        check_hearing()
    recording = await chat.attach_recording(name, data)
    live = ctx.live.start(recording.id, chat.hear(recording.id, data, ear=ear))
    with anyio.move_on_after(_HEARD_AT_ONCE_S):
        async with aclosing(live.follow()) as steps:
            async for _ in steps:
                pass
    return await chat.file(recording.id)


# ── keeping order ────────────────────────────────────────────────────────────────────────────────────────────────


@routes.post("/c/{conversation_id}/rename")
async def rename(ctx: Context, conversation_id: UUID, title: Annotated[str, Form()] = "") -> Response:
    await Chat(ctx).rename(conversation_id, title)
    return _back(conversation_id, "名前を変えました")


@routes.post("/c/{conversation_id}/pin")
async def pin(ctx: Context, conversation_id: UUID, pinned: Annotated[str, Form()] = "") -> Response:
    await Chat(ctx).pin(conversation_id, pinned=pinned == "1")
    return _back(conversation_id, "固定しました" if pinned == "1" else "固定を外しました")


@routes.post("/c/{conversation_id}/move")
async def move(ctx: Context, conversation_id: UUID, folder: Annotated[str, Form()] = "") -> Response:
    await Chat(ctx).move(conversation_id, folder)
    folder = " ".join(folder.split())
    return _back(conversation_id, f"会話を「{folder}」に移しました" if folder else "フォルダーから出しました")


@routes.get("/c/{conversation_id}/manage")
async def manage(ctx: Context, request: Request, conversation_id: UUID) -> Response:
    """Name and folder."""
    chat = Chat(ctx)
    found = await chat.open(conversation_id)
    folders = service.folders(await chat.history())
    return await _panel(ctx, request, "manage", conversation=found, folders=folders)


@routes.get("/c/{conversation_id}/delete")
async def confirm_delete(ctx: Context, request: Request, conversation_id: UUID) -> Response:
    """Asks once more, with what would be lost named in full."""
    found = await Chat(ctx).open(conversation_id)
    return await _panel(ctx, request, "delete", conversation=found, loss=service.loss(found.messages))


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
async def export_page(
    ctx: Context, request: Request, conversation_id: UUID, answer: str = "", kind: Kind = "docx"
) -> Response:
    """事実確認: the checklist that stands before every export; below the answer for scripts, else a page."""
    found, chosen = await _answers(ctx, conversation_id, answer, kind)
    return await _export_page(ctx, request, found, chosen, answer, kind, missing=None)


@routes.post("/c/{conversation_id}/export")
async def export(
    ctx: Context,
    request: Request,
    conversation_id: UUID,
    answer: Annotated[str, Form()] = "",
    kind: Annotated[Kind, Form()] = "docx",
    checked: Annotated[list[str] | None, Form()] = None,
) -> Response:
    """The conversation (or one answer) as docx, or its tables as xlsx, once every point is ticked."""
    found, chosen = await _answers(ctx, conversation_id, answer, kind)
    items = checklist("\n".join(m.text for m in chosen))
    missing = [i for i in items if i not in (checked or ())]
    if missing:
        return await _export_page(ctx, request, found, chosen, answer, kind, missing=missing)
    chat = Chat(ctx)
    for message in chosen:
        await chat.keep_checked(message.id, items)
    await ctx.audit(f"export_{kind}", about=("conversation", conversation_id), answers=len(chosen))
    if kind == "xlsx":
        texts = [m.text for m in chosen] + [c.markdown for m in found.messages for c in m.computed if not answer]
        return _download(await anyio.to_thread.run_sync(tables_xlsx, texts), f"{found.title}.xlsx", _XLSX)
    shown = chosen if answer else [m for m in found.messages if m.text]
    today = wareki(local(ctx.now).date())
    who = ctx.actor.section_name or ctx.actor.tenant_name
    blocks = [_block(m) for m in shown]
    blocks.append(Block("確認した項目", "\n".join(f"- {item}" for item in items), f"{today}、{who}の職員が確認"))
    footer = f"AIの下書きを職員が確認して書き出しました（{today}、{who}）"
    document = await anyio.to_thread.run_sync(partial(conversation_docx, found.title, blocks, footer=footer))
    return _download(document, f"{found.title}.docx", _DOCX)


async def _export_page(
    ctx: AppContext,
    request: Request,
    found: Conversation,
    chosen: Sequence[Message],
    answer: str,
    kind: Kind,
    *,
    missing: Sequence[str] | None,
) -> Response:
    items = checklist("\n".join(m.text for m in chosen))
    if missing is None:
        # What was confirmed at an earlier export of the same text need not be confirmed again.
        known = set.intersection(*(set(m.checked) for m in chosen))
        ticked = [i for i in items if i in known]
    else:
        ticked = [i for i in items if i not in missing]
    return await _panel(
        ctx,
        request,
        "export",
        status=422 if missing else 200,
        conversation=found,
        answer=answer,
        kind=kind,
        items=items,
        ticked=ticked,
        missing=missing,
        chosen=chosen,
    )


@routes.get("/c/{conversation_id}/text/{message_id}")
async def as_text(ctx: Context, conversation_id: UUID, message_id: UUID) -> Response:
    """An answer as plain text, for copying."""
    return PlainTextResponse(plain_text((await Chat(ctx).open(conversation_id)).find(message_id).text))


# ── the person's own prompts ─────────────────────────────────────────────────────────────────────────────────────


@routes.get("/prompts")
async def prompts_page(ctx: Context) -> Response:
    return await ctx.page("prompts.html", prompts=await Chat(ctx).prompts(), deleted=None)


@routes.get("/c/{conversation_id}/prompt/{message_id}")
async def save_prompt_page(ctx: Context, request: Request, conversation_id: UUID, message_id: UUID) -> Response:
    """A question (or the question of an answer) as the person's own prompt, to be named and trimmed first."""
    found = await Chat(ctx).open(conversation_id)
    source = found.find(message_id)
    if source.role == "assistant":
        source = found.question_of(message_id)
    return await _prompt_form(
        ctx, request, title=service.title_of(source.text), text=source.text, back=f"/apps/chat/c/{conversation_id}"
    )


@routes.get("/prompts/new")
async def new_prompt_page(ctx: Context, request: Request) -> Response:
    return await _prompt_form(ctx, request)


@routes.get("/prompts/{prompt_id}")
async def edit_prompt_page(ctx: Context, request: Request, prompt_id: UUID) -> Response:
    prompt = await Chat(ctx).prompt(prompt_id)
    return await _prompt_form(ctx, request, prompt_id=str(prompt_id), title=prompt.title, text=prompt.text)


@routes.post("/prompts")
async def save_prompt(
    ctx: Context,
    request: Request,
    text: Annotated[str, Form()] = "",
    title: Annotated[str, Form()] = "",
    prompt_id: Annotated[str, Form()] = "",
) -> Response:
    try:
        await Chat(ctx).save_prompt(title, text, prompt_id=_uuid(prompt_id) if prompt_id else None)
    except (service.NothingToSend, service.TooLong) as problem:
        return await _prompt_form(
            ctx, request, status=422, prompt_id=prompt_id, title=title, text=text, error=problem.detail or problem.title
        )
    return _toast(RedirectResponse("/apps/chat/prompts", status_code=303), "プロンプトを保存しました")


@routes.post("/prompts/{prompt_id}/delete")
async def delete_prompt(ctx: Context, prompt_id: UUID) -> Response:
    """At once, with a way back on the next page."""
    chat = Chat(ctx)
    title = (await chat.prompt(prompt_id)).title
    await chat.delete_prompt(prompt_id)
    return await ctx.page("prompts.html", prompts=await chat.prompts(), deleted=(prompt_id, title))


@routes.post("/prompts/{prompt_id}/restore")
async def restore_prompt(ctx: Context, prompt_id: UUID) -> Response:
    await Chat(ctx).restore_prompt(prompt_id)
    return _toast(RedirectResponse("/apps/chat/prompts", status_code=303), "元に戻しました")


async def _prompt_form(
    ctx: AppContext,
    request: Request,
    *,
    status: int = 200,
    prompt_id: str = "",
    title: str = "",
    text: str = "",
    error: str = "",
    back: str = "/apps/chat/prompts",
) -> Response:
    return await _panel(
        ctx, request, "prompt", status=status, prompt_id=prompt_id, title=title, text=text, error=error, back=back
    )


# ── 誤りを報告 ───────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("/c/{conversation_id}/report/{message_id}")
async def report_page(ctx: Context, request: Request, conversation_id: UUID, message_id: UUID) -> Response:
    """What is sent is shown, the text goes only when it is ticked."""
    found = await Chat(ctx).open(conversation_id)
    return await _panel(ctx, request, "report", conversation=found, message=found.find(message_id))


@routes.post("/c/{conversation_id}/report/{message_id}")
async def report(
    ctx: Context,
    conversation_id: UUID,
    message_id: UUID,
    note: Annotated[str, Form()] = "",
    with_content: Annotated[str, Form()] = "",
) -> Response:
    found = await Chat(ctx).open(conversation_id)
    answer = found.find(message_id)
    told = [f"困ったこと：{note.strip()[:2_000]}"] if note.strip() else []
    if with_content:
        told += [f"【質問】\n{found.question_of(message_id).text}", f"【回答】\n{answer.text}"]
    await ctx.report(
        page=f"/apps/chat/c/{conversation_id}",
        kind="wrong_answer" if answer.state != "failed" else "not_working",
        problem_number=answer.call_id,
        content="\n\n".join(told) or None,
    )
    return _back(conversation_id, "町の管理者に知らせました")


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _page(ctx: AppContext, found: Conversation | None, *, status: int = 200, **facts: Any) -> Response:
    """The chat page; it opens while the gateway is away, so that what was written can be read and taken along."""
    chat = Chat(ctx)
    everything = await chat.history()
    folder = str(facts.pop("folder", "") or (found.folder if found else ""))
    today = local(ctx.now).date()
    due, all_year = cards_for(ctx.actor.section_name, today)
    data_class = max(found.data_class if found else "1", facts.pop("data_class", "1"), key=WEIGHTS.index)
    is_light = found is not None and found.sent_as != data_class == found.data_class
    models, models_problem = await _models(ctx, service.MASKED_WEIGHT if is_light else data_class)
    usual = "standard"
    if all(m.why_not for m in models if m.alias == usual):
        # A page without scripts sends what is ticked, and a model that is not allowed cannot be.
        usual = next((m.alias for m in models if not m.why_not), usual)
    defaults = {
        "conversation": found,
        "coming": None,
        "data_class": data_class,
        "models": models,
        "models_problem": models_problem,
        "model": found.model if found else usual,
        "left": await ctx.remaining(),
        "send_key": ctx.preferences.get("send_key", ""),
        "month": today.month,
        "due": due,
        "all_year": all_year,
        "chosen": None,
        "saved": None,
        "prompts": [],
        "typed": "",
        "edit": "",
        "edited": None,
        "send_words": SEND_WORDS,
        "waiting": [],
        "problem": None,
        "look": None,
        "asked": None,
        "seeing": await _seeing(ctx, facts.get("waiting", ())),
        "beside": True,
        "more": max(0, len(everything) - _BESIDE),
        **_nothing_found(),
        **await _message_words(ctx, found.messages if found else ()),
    }
    # A new conversation for a folder stands beside what is in it; an open one beside all.
    shown = [c for c in everything if found or not folder or c.folder == folder]
    beside = _history_facts(ctx, everything, shown[:_BESIDE], folder)
    return await ctx.page("chat.html", status=status, **(defaults | beside | facts))


async def _panel(ctx: AppContext, request: Request, name: str, *, status: int = 200, **facts: Any) -> Response:
    """A form that opens over the page for scripts, and is a page of its own without."""
    is_fragment = bool(request.headers.get("hx-request"))
    return await ctx.page(f"{'_' if is_fragment else ''}{name}.html", status=status, **facts)


def _history_facts(
    ctx: AppContext, everything: Sequence[Conversation], shown: Sequence[Conversation], folder: str
) -> dict[str, Any]:
    return {
        "groups": service.grouped(shown, local(ctx.now)),
        "folders": service.folders(everything),
        "total": len(everything),
        "folder": folder,
    }


def _nothing_found() -> dict[str, Any]:
    return {"q": "", "hits": [], "unread": 0}


async def _message_words(ctx: AppContext, messages: Sequence[Message]) -> dict[str, Any]:
    """What the messages' template needs beside the messages."""
    stopped = [UUID(m.call_id) for m in messages if m.state == "stopped" and m.call_id]
    charges = await ctx.charges(stopped) if stopped else {}
    return {
        "lost_after": lambda c, m: service.loss(c.after(m.id)),
        "charge_of": lambda m: charges.get(UUID(m.call_id)) if m.call_id else None,
    }


async def _models(ctx: AppContext, data_class: str) -> tuple[Sequence[ModelChoice], Problem | None]:
    try:
        return await ctx.models(data_class), None
    except Problem as problem:
        return (), problem


async def _answers(
    ctx: AppContext, conversation_id: UUID, answer: str, kind: Kind
) -> tuple[Conversation, list[Message]]:
    """What is exported: one answer or all that stand. Raises `NotFound` for nothing, or no table for xlsx."""
    found = await Chat(ctx).open(conversation_id)
    chosen = [found.find(_uuid(answer))] if answer else list(found.answers)
    chosen = [m for m in chosen if m.role == "assistant" and m.text]
    if kind == "xlsx" and not any(markdown_tables(m.text) for m in chosen):
        raise NotFound("この回答に表はありません。")
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


def _class(ctx: AppContext, value: str) -> str:
    """The weight that was chosen, or the town's where none was. Raises `InvalidInput`."""
    value = value or ctx.default_class
    if value not in WEIGHTS:
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


def _back(conversation_id: UUID, words: str, anchor: str = "") -> RedirectResponse:
    return _toast(RedirectResponse(f"/apps/chat/c/{conversation_id}{anchor}", status_code=303), words)


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
            f"i-{c.icon}",
            f"{today.month}月の仕事" if c.months else "",
            c.minutes,
            c.data_class,
        )
        for c in (*due, *all_year)
    ]
    recent = (await Chat(ctx).history())[:3]
    resume = tuple(
        HomeItem(
            c.title, f"/apps/chat/c/{c.id}", f"チャット　{when(c.updated_at, ctx.now)}", "i-chat", act="会話を開く"
        )
        for c in recent
    )
    return HomeParts(tuple(items[: len(due)])[:6], tuple(items[len(due) :]), resume)


async def _search(ctx: AppContext, query: str) -> tuple[HomeItem, ...]:
    """Task cards, the person's own prompts and conversations with every word of a query, whatever its widths."""
    words = service.folded(query).split()

    def has_all(*texts: str) -> bool:
        told = service.folded(" ".join(texts))
        return bool(words) and all(word in told for word in words)

    chat = Chat(ctx)
    cards = [
        HomeItem(c.title, f"/apps/chat?{urlencode({'card_id': c.id})}", c.lead, f"i-{c.icon}", "仕事")
        for c in all_cards()
        if c.is_for(ctx.actor.section_name) and has_all(c.title, c.lead)
    ]
    prompts = [
        HomeItem(p.title, f"/apps/chat?{urlencode({'prompt': str(p.id)})}", p.text[:60], "i-save", "保存したプロンプト")
        for p in await chat.prompts()
        if has_all(p.title, p.text)
    ]
    conversations = [
        HomeItem(
            found.conversation.title,
            f"/apps/chat/c/{found.conversation.id}",
            "".join(text for text, _ in found.excerpt),
            "i-chat",
            "会話",
        )
        for found in (await chat.search(query))[0][:20]
    ]
    return (*cards, *prompts, *conversations)


app = App(
    manifest=load_manifest(Path(__file__).parent),
    router=routes,
    folder=Path(__file__).parent,
    home=_home,
    search=_search,
    sent=service.sent_since,
)
