"""町の管理・APIキー: shown once, with scopes, models and an expiry; rotated without a gap; revoked at once."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Form
from starlette.responses import Response

from apps.sdk.office import Office, OfficeContext, ask, back
from apps.sdk.ui.render import MODEL_WORDS
from observability.problems import Conflict, InvalidInput, NotFound, Problem
from tenants import audit
from tenants.context import SectionId
from tenants.identity.api_keys import ROTATION_OVERLAP, create_key, list_keys, revoke_key, rotate_key
from tenants.models import ApiKey
from tenants.people import list_sections

routes = APIRouter()

HERE: Final = "/console/town/keys"
DAYS: Final[Mapping[int, str]] = {30: "30日", 90: "90日", 365: "1年"}
SCOPE_WORDS: Final[Mapping[str, str]] = {
    "models": "モデルの一覧", "chat": "会話（chat/completions）", "completions": "文章の続き（completions）",
    "embeddings": "文章の特徴（embeddings）", "rerank": "文章の並べ替え（rerank）",
    "audio": "音声の文字起こし（audio/transcriptions）", "images": "絵を描く（images/generations）",
}  # fmt: skip


@routes.get("/keys")
async def keys_page(office: OfficeContext) -> Response:
    return await _keys_page(office)


async def _keys_page(
    office: Office, *, shown: str = "", problem: Problem | None = None, typed: Mapping[str, object] | None = None
) -> Response:
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        keys = await list_keys(session, office.actor.tenant_id)
        sections = await list_sections(session, office.actor.tenant_id)
    live = [k for k in keys if k.revoked_at is None and (k.expires_at is None or k.expires_at > office.now)]
    return await office.page(
        "console/keys.html",
        status=200 if problem is None else int(problem.status),
        keys=live,
        ended=[k for k in keys if k not in live],
        soon=office.now + timedelta(days=30),
        shown=shown,
        problem=problem,
        typed=typed or {"scopes": list(SCOPE_WORDS), "models": list(MODEL_WORDS), "days": 365},
        section_names={s.id: s.name for s in sections},
        sections=[("", "町全体の枠から"), *((str(s.id), f"{s.name}の枠から") for s in sections)],
        scope_words=SCOPE_WORDS,
        models=MODEL_WORDS,
        days=DAYS,
        api_url=f"{office.settings.public_url}/v1",
    )


@routes.post("/keys")
async def new_key(
    office: OfficeContext,
    label: Annotated[str, Form()] = "",
    section: Annotated[str, Form()] = "",
    scope: Annotated[list[str] | None, Form()] = None,
    model: Annotated[list[str] | None, Form()] = None,
    days: Annotated[int, Form()] = 365,
) -> Response:
    """The key is in this answer and nowhere else."""
    scopes, models = frozenset(scope or ()), tuple(m for m in MODEL_WORDS if m in (model or ()))
    typed = {"label": label, "section": section, "scopes": list(scopes), "models": list(models), "days": days}
    try:
        if days not in DAYS:
            raise InvalidInput("期限を選んでください。", field="days")
        if not scopes or not models:
            raise InvalidInput("できることとモデルを、1つは選んでください。", field="scope")
        async with office.db.tenant_session(office.actor.context, read_only=True) as session:
            known = {str(s.id) for s in await list_sections(session, office.actor.tenant_id)}
        if section and section not in known:
            raise InvalidInput("枠を選び直してください。", field="section")
        async with office.db.platform_session("api keys") as session:
            plain = await create_key(
                session,
                office.actor.tenant_id,
                office.peppers,
                env=office.settings.env,
                label=label,
                section_id=SectionId(UUID(section)) if section else None,
                # All of them means no restriction, so that what comes later is not shut out.
                scopes=frozenset() if scopes == set(SCOPE_WORDS) else scopes,
                models=() if len(models) == len(MODEL_WORDS) else models,
                expires_at=office.now + timedelta(days=days),
                by=office.actor.person_id,
            )
            await audit.record(session, office.actor.tenant_id, office.by, "key.create", about=("key", plain.key_id))
    except InvalidInput as problem:
        return await _keys_page(office, problem=problem, typed=typed)
    return await _keys_page(office, shown=plain.text)


async def _key(office: Office, key_id: str) -> ApiKey:
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        found = next((k for k in await list_keys(session, office.actor.tenant_id) if k.key_id == key_id), None)
    if found is None:
        raise NotFound
    return found


@routes.post("/keys/{key_id}/rotate")
async def rotate(office: OfficeContext, key_id: str, confirmed: Annotated[str, Form()] = "") -> Response:
    key = await _key(office, key_id)
    if not confirmed:
        return await ask(
            office,
            title=f"「{key.label}」の鍵を取り替えますか",
            lines=[
                "新しい鍵を1回だけ表示します。業務システムの設定を、新しい鍵に変えてください。",
                f"今の鍵は{ROTATION_OVERLAP.days}日だけ一緒に使え、その後は使えなくなります。",
            ],
            action=f"{HERE}/{key_id}/rotate",
            button="取り替える",
            refuse="取り替えない",
            back_to=HERE,
        )
    try:
        async with office.db.platform_session("api keys") as session:
            plain = await rotate_key(
                session,
                office.actor.tenant_id,
                office.peppers,
                key_id,
                env=office.settings.env,
                by=office.actor.person_id,
            )
            await audit.record(session, office.actor.tenant_id, office.by, "key.rotate", about=("key", key_id))
    except Conflict as problem:
        return await _keys_page(office, problem=problem)
    return await _keys_page(office, shown=plain.text)


@routes.post("/keys/{key_id}/revoke")
async def revoke(office: OfficeContext, key_id: str, confirmed: Annotated[str, Form()] = "") -> Response:
    key = await _key(office, key_id)
    if not confirmed:
        return await ask(
            office,
            title=f"「{key.label}」の鍵を取り消しますか",
            lines=[
                "この鍵を使う業務システムは、すぐに呼び出せなくなります。",
                "取り消した鍵は元に戻せません。続けるときは「取り替える」を使うと、止まらずに移れます。",
            ],
            action=f"{HERE}/{key_id}/revoke",
            button="取り消す",
            refuse="取り消さない",
            back_to=HERE,
            danger=True,
        )
    async with office.db.platform_session("api keys") as session:
        await revoke_key(session, office.actor.tenant_id, key_id)
        await audit.record(session, office.actor.tenant_id, office.by, "key.revoke", about=("key", key_id))
    return back(HERE, f"「{key.label}」の鍵を取り消しました")
