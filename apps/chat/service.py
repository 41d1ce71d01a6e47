"""Conversations: what is stored, what is sent to the model, and what comes back.

A conversation, its messages and its attached files are documents of this app. Nothing here knows how they are kept.
"""

import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal
from uuid import UUID

import anyio

from apps.chat.hints import Hint, hint_for
from apps.sdk import AppContext, InvalidInput, NotFound, Problem
from apps.sdk.intake import Reading, Table, TableRow
from apps.sdk.tables import answer_computation

TITLE_CHARACTERS: Final = 28
MAX_QUESTION_CHARACTERS: Final = 30_000
# What is sent of attached text and of earlier turns; the rest is said to be left out.
MAX_MATERIAL_CHARACTERS: Final = 60_000
MAX_HISTORY_CHARACTERS: Final = 40_000
MAX_FILES: Final = 10

MODELS: Final = {"fast": "速い", "standard": "標準", "onprem": "庁内専用"}

State = Literal["done", "stopped", "failed"]


class NothingToSend(InvalidInput):
    type = "urn:problem:chat:nothing-to-send"
    title = "質問を書いてください"


class TooLong(InvalidInput):
    type = "urn:problem:chat:too-long"
    title = "質問が長すぎます"


@dataclass(frozen=True, slots=True)
class AttachedFile:
    """A file as it was read. `doubtful` when something in it could not be read."""

    id: UUID
    name: str
    kind: str
    summary: str
    doubtful: bool
    text: str = field(repr=False)
    parts: tuple[dict[str, Any], ...] = field(repr=False, default=())
    warnings: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    tables: tuple[Table, ...] = field(repr=False, default=())


@dataclass(frozen=True, slots=True)
class Computed:
    """A count or sum made by code: the words, the result as Markdown, and the rows it came from."""

    title: str
    markdown: str
    how: str
    rows: str


@dataclass(frozen=True, slots=True)
class Message:
    id: UUID
    role: Literal["user", "assistant"]
    text: str = field(repr=False)
    state: State
    at: datetime
    model: str = ""
    zone: str = ""
    zone_owner: str = ""
    country: str = ""
    call_id: str = ""
    finish_reason: str = ""
    problem_title: str = ""
    problem_detail: str = ""
    files: tuple[AttachedFile, ...] = ()
    computed: tuple[Computed, ...] = ()
    hint: Hint | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    id: UUID
    version: int
    title: str
    folder: str
    pinned: bool
    model: str
    data_class: str
    updated_at: datetime
    messages: tuple[Message, ...] = ()

    @property
    def answers(self) -> tuple[Message, ...]:
        return tuple(m for m in self.messages if m.role == "assistant" and m.text)


@dataclass(frozen=True, slots=True)
class Turn:
    """A question that is stored and about to be answered."""

    conversation: Conversation
    question: Message
    model: str
    data_class: str
    messages: tuple[dict[str, str], ...] = field(repr=False)
    has_unread: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that has just come."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer as it is stored, complete or cut off."""

    message: Message


class Chat:
    """One person's chats; made per request."""

    def __init__(self, ctx: AppContext) -> None:
        self._ctx = ctx

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def history(self) -> list[Conversation]:
        """The person's conversations, last used first, without messages."""
        found: list[Conversation] = []
        cursor: str | None = None
        while True:
            page = await self._ctx.documents.list("conversation", mine=True, cursor=cursor, limit=200)
            found += [_conversation(d) for d in page.items]
            cursor = page.next_cursor
            if cursor is None or len(found) >= 2_000:
                return found

    async def open(self, conversation_id: UUID) -> Conversation:
        """A conversation with its messages. Raises `NotFound`."""
        document = await self._ctx.documents.get(conversation_id, kind="conversation")
        messages: list[Message] = []
        cursor: str | None = None
        while True:
            page = await self._ctx.documents.list(
                "message", parent=conversation_id, order="oldest", cursor=cursor, limit=200
            )
            for item in page.items:
                messages.append(await self._message(item))
            cursor = page.next_cursor
            if cursor is None:
                return _conversation(document, tuple(messages))

    async def search(self, query: str) -> list[tuple[Conversation, str]]:
        """Conversations whose title or messages have every word, with an excerpt; widths and case are the same."""
        result = await self._ctx.documents.search(query, kinds=("conversation", "message"), limit=50)
        hits: dict[UUID, str] = {}
        for hit in result.hits:
            owner = hit.document.id if hit.document.kind == "conversation" else hit.document.parent_id
            if owner is not None:
                hits.setdefault(owner, hit.excerpt)
        found = []
        for conversation_id, excerpt in hits.items():
            try:
                found.append((_conversation(await self._ctx.documents.get(conversation_id)), excerpt))
            except NotFound:
                continue
        return found

    async def file(self, file_id: UUID) -> AttachedFile:
        return _file(await self._ctx.documents.get(file_id, kind="file"))

    # ── changing ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def attach(self, name: str, reading: Reading, data: bytes) -> AttachedFile:
        """Keeps a file that was read: its bytes sealed, its text as a document. Not yet part of a conversation."""
        blob = await self._ctx.blobs.save(name, data)
        body = _file_body(name, reading) | {"blob": str(blob.id)}
        document = await self._ctx.documents.create("file", body)
        await self._ctx.blobs.attach(blob.id, document.id)
        return _file(document)

    async def ask(
        self, text: str, *, conversation_id: UUID | None, model: str, data_class: str, files: Sequence[UUID]
    ) -> Turn:
        """Stores a question and prepares what is sent. Raises `NothingToSend`, `TooLong`, `NotFound`."""
        text = text.strip()
        if not text:
            raise NothingToSend("文章を書いてから「送る」を押してください。", field="text")
        if len(text) > MAX_QUESTION_CHARACTERS:
            raise TooLong(
                f"{MAX_QUESTION_CHARACTERS:,}字までにしてください。長い文章はファイルで付けられます。", field="text"
            )
        if len(files) > MAX_FILES:
            raise TooLong(f"付けられる資料は{MAX_FILES}個までです。", field="files")
        model = model if model in MODELS else "standard"
        attached = [await self.file(f) for f in files]
        conversation = (
            await self.open(conversation_id)
            if conversation_id is not None
            else await self._create(text, model, data_class)
        )
        earlier = [f for m in conversation.messages for f in m.files]
        # A table of a hundred thousand rows takes seconds; other people's pages go on meanwhile.
        computed = await anyio.to_thread.run_sync(_computed, text, attached or earlier)
        hint = hint_for(text, has_attachments=bool(attached or earlier))
        body = {
            "role": "user",
            "text": text,
            "state": "done",
            "files": [str(f.id) for f in attached],
            "computed": [[c.title, c.markdown, c.how, c.rows] for c in computed],
            "hint": [hint.title, hint.detail] if hint else None,
        }
        document = await self._ctx.documents.create("message", body, parent=conversation.id)
        question = await self._message(document)
        return self._turn(conversation, question, model, data_class, [*earlier, *attached])

    async def ask_again(self, conversation_id: UUID, question_id: UUID, text: str | None = None) -> Turn:
        """Answers a question anew, with other words if given; what came after it goes to the trash."""
        conversation = await self.open(conversation_id)
        index = next((i for i, m in enumerate(conversation.messages) if m.id == question_id and m.role == "user"), None)
        if index is None:
            raise NotFound
        for later in conversation.messages[index + 1 :]:
            await self._ctx.documents.delete(later.id)
        question = conversation.messages[index]
        if text is not None and text.strip() and text.strip() != question.text:
            document = await self._ctx.documents.get(question_id, kind="message")
            changed = await self._ctx.documents.update(
                question_id, document.body | {"text": text.strip()}, version=document.version, keep_version=True
            )
            question = await self._message(changed)
        kept = conversation.messages[:index]
        conversation = _with_messages(conversation, kept)
        files = [f for m in (*kept, question) for f in m.files]
        return self._turn(conversation, question, conversation.model, conversation.data_class, files)

    async def answer(self, turn: Turn) -> AsyncGenerator[Piece | Finished, None]:
        """Streams the answer; whatever happens (stopped, client gone, refused) what came so far is stored."""
        text: list[str] = []
        body: dict[str, Any] = {"role": "assistant", "state": "stopped", "model": turn.model}
        stored = False
        try:
            async with self._ctx.gateway.stream_chat(
                turn.messages, model=turn.model, data_class=turn.data_class
            ) as stream:
                body |= {
                    "zone": stream.zone,
                    "zone_owner": stream.zone_owner,
                    "country": stream.vendor_country,
                    "call_id": stream.call_id,
                }
                async for delta in stream:
                    if delta.text:
                        text.append(delta.text)
                        yield Piece(delta.text)
                    if delta.finish_reason:
                        body["finish_reason"] = delta.finish_reason
            body["state"] = "done"
        except Problem as problem:
            body |= {"state": "failed", "problem_title": problem.title, "problem_detail": problem.detail}
        finally:
            if body["state"] == "stopped":
                with anyio.CancelScope(shield=True):
                    await self._store_answer(turn, body, "".join(text))
                stored = True
        if not stored:
            yield Finished(await self._store_answer(turn, body, "".join(text)))

    async def _store_answer(self, turn: Turn, body: dict[str, Any], text: str) -> Message:
        document = await self._ctx.documents.create("message", body | {"text": text}, parent=turn.conversation.id)
        await self._ctx.documents.touch(turn.conversation.id)
        return await self._message(document)

    async def rename(self, conversation_id: UUID, title: str) -> None:
        title = " ".join(title.split())[:80]
        if not title:
            raise InvalidInput("名前を書いてください。", field="title")
        await self._change(conversation_id, title=title)

    async def pin(self, conversation_id: UUID, *, pinned: bool) -> None:
        await self._change(conversation_id, pinned=pinned)

    async def move(self, conversation_id: UUID, folder: str) -> None:
        await self._change(conversation_id, folder=" ".join(folder.split())[:20])

    async def choose(self, conversation_id: UUID, *, model: str, data_class: str) -> None:
        await self._change(conversation_id, model=model, data_class=data_class)

    async def delete(self, conversation_id: UUID) -> None:
        """To the trash, for 30 days."""
        await self._ctx.documents.get(conversation_id, kind="conversation")
        await self._ctx.documents.delete(conversation_id)

    async def is_in_trash(self, conversation_id: UUID) -> bool:
        """Raises `NotFound` for what is not this person's."""
        found = await self._ctx.documents.get(conversation_id, kind="conversation", deleted=True)
        return found.deleted_at is not None

    async def restore(self, conversation_id: UUID) -> None:
        await self._ctx.documents.restore(conversation_id)

    async def save_prompt(self, title: str, text: str) -> None:
        """Keeps a message as the person's own prompt."""
        title = " ".join(title.split())[:60] or text.strip()[:TITLE_CHARACTERS]
        await self._ctx.documents.create("prompt", {"title": title, "text": text})

    async def prompts(self) -> list[tuple[UUID, str, str]]:
        page = await self._ctx.documents.list("prompt", mine=True, limit=100)
        return [(d.id, str(d.body["title"]), str(d.body["text"])) for d in page.items]

    async def delete_prompt(self, prompt_id: UUID) -> None:
        await self._ctx.documents.get(prompt_id, kind="prompt")
        await self._ctx.documents.delete(prompt_id)

    async def _create(self, text: str, model: str, data_class: str) -> Conversation:
        document = await self._ctx.documents.create(
            "conversation",
            {"title": title_of(text), "folder": "", "pinned": False, "model": model, "data_class": data_class},
        )
        return _conversation(document)

    async def _change(self, conversation_id: UUID, **changes: object) -> None:
        document = await self._ctx.documents.get(conversation_id, kind="conversation")
        await self._ctx.documents.update(
            conversation_id, document.body | changes, version=document.version, touch=False
        )

    async def _message(self, document: Any) -> Message:
        body = document.body
        files = []
        for file_id in body.get("files", ()):
            try:
                files.append(await self.file(UUID(file_id)))
            except NotFound:
                continue
        hint = body.get("hint")
        return Message(
            id=document.id,
            role=body["role"],
            text=body["text"],
            state=body.get("state", "done"),
            at=document.created_at,
            model=body.get("model", ""),
            zone=body.get("zone", ""),
            zone_owner=body.get("zone_owner", ""),
            country=body.get("country", ""),
            call_id=body.get("call_id", ""),
            finish_reason=body.get("finish_reason", ""),
            problem_title=body.get("problem_title", ""),
            problem_detail=body.get("problem_detail", ""),
            files=tuple(files),
            computed=tuple(Computed(*c) for c in body.get("computed", ())),
            hint=Hint(*hint) if hint else None,
        )

    def _turn(
        self,
        conversation: Conversation,
        question: Message,
        model: str,
        data_class: str,
        files: Sequence[AttachedFile],
    ) -> Turn:
        messages = [{"role": "system", "content": _system_prompt()}]
        messages += _history(conversation.messages)
        messages.append({"role": "user", "content": _question(question, files)})
        return Turn(conversation, question, model, data_class, tuple(messages))


def title_of(text: str) -> str:
    """The first line of a question, cut to a length that fits the history."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= TITLE_CHARACTERS else line[: TITLE_CHARACTERS - 1] + "…"


def grouped(conversations: Sequence[Conversation], now: datetime) -> list[tuple[str, list[Conversation]]]:
    """The history as a clerk thinks of it: pinned, today, yesterday, this week, last week, then by month."""
    today = now.date()
    monday = today - timedelta(days=today.weekday())
    groups: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        day = conversation.updated_at.astimezone(now.tzinfo).date()
        if conversation.pinned:
            name = "固定した会話"
        elif day == today:
            name = "今日"
        elif day == today - timedelta(days=1):
            name = "昨日"
        elif day >= monday:
            name = "今週"
        elif day >= monday - timedelta(days=7):
            name = "先週"
        elif day.year == today.year:
            name = f"{day.month}月"
        else:
            name = f"{day.year}年{day.month}月"
        groups.setdefault(name, []).append(conversation)
    pinned = groups.pop("固定した会話", None)
    return ([("固定した会話", pinned)] if pinned else []) + list(groups.items())


def folders(conversations: Sequence[Conversation]) -> list[tuple[str, int]]:
    """Folder names with how many conversations each has, by name."""
    counts: dict[str, int] = {}
    for conversation in conversations:
        if conversation.folder:
            counts[conversation.folder] = counts.get(conversation.folder, 0) + 1
    return sorted(counts.items())


def checklist(text: str) -> list[str]:
    """What to confirm before an answer leaves the house, made from what stands in it (事実確認)."""
    items = ["元の資料や質問と、内容が合っている"]
    if any(c.isdigit() for c in text):
        items.append("数字・件数・金額を、元の資料で確かめた")
    if any(mark in text for mark in ("月", "日", "年", "時")):
        items.append("日付と曜日を確かめた")
    if any(mark in text for mark in ("法", "条例", "規則", "第")):
        items.append("法令や条例の名前と条番号を、例規集で確かめた")
    items.append("個人が分かる情報が含まれていない")
    return items


def _system_prompt() -> str:
    return (Path(__file__).parent / "prompts" / "system.md").read_text("utf-8")


def _history(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Earlier turns, newest first until the limit, in order; failed answers are left out."""
    kept: list[dict[str, str]] = []
    size = 0
    for message in reversed(messages):
        if not message.text or message.state == "failed":
            continue
        size += len(message.text)
        if size > MAX_HISTORY_CHARACTERS:
            break
        kept.append({"role": message.role, "content": message.text})
    return kept[::-1]


def _question(question: Message, files: Sequence[AttachedFile]) -> str:
    """The question, then what code computed, then the material inside a marker nobody can guess."""
    parts = [question.text]
    if question.computed:
        facts = "\n\n".join(f"{c.title}（{c.how}）\n{c.markdown}" for c in question.computed)
        parts.append(f"計算済み:\n{facts}")
    room = MAX_MATERIAL_CHARACTERS
    marker = secrets.token_hex(8)
    for file in files:
        text = file.text[:room]
        room -= len(text)
        if not file.text.strip():
            parts.append(f"《資料 {file.name}: 文字を読み取れませんでした。内容は分かりません。》")
            continue
        if not text:
            parts.append(f"《資料 {file.name}: 長さの上限を超えたため、送っていません。》")
            continue
        cut = "（長いため、ここまで）" if len(text) < len(file.text) else ""
        parts.append(f"《資料 {marker} 開始 {file.name}》\n{text}{cut}\n《資料 {marker} 終わり》")
    return "\n\n".join(parts)


def _computed(question: str, files: Sequence[AttachedFile]) -> list[Computed]:
    """What the question asks to count or sum, for each table that answers it."""
    found = ((file, answer_computation(question, [table])) for file in files for table in file.tables)
    return [
        Computed(
            title=f"{file.name} {answers[0].title}",
            markdown=answers[0].markdown,
            how=answers[0].formula,
            rows=answers[0].rows_in_words,
        )
        for file, answers in found
        if answers
    ]


def _conversation(document: Any, messages: tuple[Message, ...] = ()) -> Conversation:
    body = document.body
    return Conversation(
        id=document.id,
        version=document.version,
        title=body["title"],
        folder=body.get("folder", ""),
        pinned=body.get("pinned", False),
        model=body.get("model", "standard"),
        data_class=body.get("data_class", "1"),
        updated_at=document.updated_at,
        messages=messages,
    )


def _with_messages(conversation: Conversation, messages: tuple[Message, ...]) -> Conversation:
    return Conversation(
        conversation.id,
        conversation.version,
        conversation.title,
        conversation.folder,
        conversation.pinned,
        conversation.model,
        conversation.data_class,
        conversation.updated_at,
        messages,
    )


def _file_body(name: str, reading: Reading) -> dict[str, Any]:
    return {
        "name": name,
        "kind": reading.kind.words,
        "summary": reading.summary,
        "doubtful": reading.is_doubtful,
        "text": reading.text,
        "parts": [
            {"label": p.label, "text": p.text, "state": p.state.value, "state_words": p.state.words, "note": p.note}
            for p in reading.parts
        ],
        "warnings": [f"{r.place} {r.words}".strip() for r in reading.warnings],
        "findings": [f"{r.place} {r.words}".strip() for r in reading.findings],
        "tables": [
            {
                "label": t.label,
                "columns": list(t.columns),
                "rows": [[r.number, list(r.cells), r.is_hidden, sorted(r.repeated)] for r in t.rows],
                "header_rows": list(t.header_rows),
                "hidden_columns": list(t.hidden_columns),
                "is_hidden": t.is_hidden,
            }
            for t in reading.tables
        ],
    }


def _file(document: Any) -> AttachedFile:
    body = document.body
    return AttachedFile(
        id=document.id,
        name=body["name"],
        kind=body["kind"],
        summary=body["summary"],
        doubtful=body["doubtful"],
        text=body["text"],
        parts=tuple(body["parts"]),
        warnings=tuple(body["warnings"]),
        findings=tuple(body["findings"]),
        tables=tuple(
            Table(
                label=t["label"],
                columns=tuple(t["columns"]),
                rows=tuple(TableRow(n, tuple(cells), hidden, frozenset(rep)) for n, cells, hidden, rep in t["rows"]),
                header_rows=tuple(t["header_rows"]),
                hidden_columns=tuple(t["hidden_columns"]),
                is_hidden=t["is_hidden"],
            )
            for t in body["tables"]
        ),
    )
