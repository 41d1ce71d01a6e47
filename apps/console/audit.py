"""監査の記録: a town's chain as its auditor and its administrator read it, check it and take it away. No content stands in it."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from starlette.responses import FileResponse, Response

from apps.console.limits import PER_WORDS
from apps.sdk.dates import local
from apps.sdk.office import OfficeContext, Progress
from apps.sdk.ui.render import ROLE_WORDS, yen
from observability.problems import InvalidInput, NotFound
from tenants.audit.reading import KINDS, Link, Wanted, find_person, names_of, read_links
from tenants.audit.verification import AuditBroken, verify_chain
from tenants.people import clean_login
from tenants.quota.windows import JST

routes = APIRouter()

SHOWN: Final = 50
# What is told of what was done; an action that is not here is shown as it is called.
ACTIONS: Final[Mapping[str, str]] = {
    "agreement.issuer": "請求する側を決めた", "agreement.region": "請求の決まりを変えた", "agreement.set": "費用の取り決めを変えた",
    "audit.download": "監査の記録を受け取った", "audit.export": "監査の記録を書き出した", "break_glass.read": "職員の付けた文を事務局が読んだ", "budget.move": "予算を動かした",
    "budget.move_back": "動かした予算を戻した", "budget.move_once": "予算をこの期間だけ動かした", "budget.set": "予算や枠を決めた",
    "call.segment": "AIの呼び出しをまとめて封じた", "chat.delete": "会話を消した", "chat.delete_prompt": "保存したプロンプトを消した",
    "chat.export_docx": "会話をWordに書き出した", "chat.export_xlsx": "会話をExcelに書き出した", "chat.restore": "会話を戻した",
    "chat.restore_prompt": "保存したプロンプトを戻した",
    "fx_rate.set": "為替の率を決めた", "grant.borrow": "共同の予算から借りた", "grant.give_back": "借りた予算を返した",
    "grant.lend": "予算を貸した", "grant.take_back": "貸した予算が戻った", "hold.place": "消去を止めた",
    "hold.release": "消去の停止を解いた", "identity_provider.remove": "町のサインイン元を消した",
    "identity_provider.set": "町のサインイン元を決めた", "invoice.close": "請求書を締めた", "key.create": "APIキーを作った", "key.retire": "古い鍵を捨てた",
    "key.revoke": "APIキーを取り消した", "key.rotate": "鍵を取り替えた", "people.download": "職員の一覧を受け取った",
    "people.import": "職員をまとめて変えた", "person.add": "職員を加えた", "person.leave": "職員が外れた",
    "person.lend_account": "ほかの団体のアカウントを入れた", "person.link": "アカウントと結び付けた", "person.move": "職員の課を変えた",
    "person.remove_second_factor": "2つ目の確認を消した", "person.rename": "職員の氏名を変えた",
    "person.reset_password": "パスワードを出し直した", "person.resume": "職員の利用を再開した", "person.return": "職員が戻った",
    "person.set_end": "職員の終了日を変えた", "person.suspend": "職員の利用を止めた", "policy.set": "入れてよい情報とアプリを変えた",
    "policy.words_tried": "止める言葉を質問で数えた", "pool.end": "共同の予算から外れた", "pool.lending": "予算の貸し借りを変えた",
    "pool.set": "共同の予算を決めた", "price.set": "モデルの単価を決めた", "provider_key.remove": "AI事業者の鍵を消した",
    "provider_key.set": "AI事業者の鍵を入れた", "rate.set": "1分あたりの上限を決めた", "report.answer": "報告に返事をした",
    "report.file": "報告があった", "report.read": "報告を読んだ", "retention.expire": "期間を過ぎたものが消えた",
    "retention.set": "保存の期間を変えた", "role.set": "役割を変えた", "second_factor.set": "2つ目の確認の決まりを変えた",
    "section.add": "課を作った", "section.change": "課を変えた", "section.close": "課を閉じた", "section.open": "課を開いた",
    "section.rename": "課の名前を変えた", "session.start": "サインインした", "slots.set": "同時の利用数を決めた",
    "tenant.create": "町を作った", "tenant.erase": "町を消去した", "tenant.export": "町のデータを書き出した",
    "tenant.export_received": "町のデータを受け取った", "tenant.link": "認証基盤と結び付けた", "tenant.resume": "町の利用を再開した",
    "tenant.suspend": "町の利用を止めた", "usage.download": "利用の記録を受け取った", "usage.reconcile": "確認待ちの額を確定した",
}  # fmt: skip
# What stands beside it; a fact that is not here is shown by the name it is kept by.
_FACTS: Final[Mapping[str, str]] = {
    "after_yen": "動かした後の予算", "answers": "回答の数", "borrow_limit_uyen": "借りられる上限", "calls": "件数", "code": "団体コード",
    "cost_uyen": "額", "count": "件数", "grant_uyen": "いまの予算", "granted": "役割を付けた", "held_uyen": "押さえていた額",
    "lend_limit_uyen": "貸せる上限", "node": "対象", "node_id": "名前", "over_uyen": "押さえた額を超えた額", "reason": "理由",
    "requests": "1分の回数", "role": "役割", "root": "照合値", "sha256": "照合値", "slots": "同時に使える数", "slots_before": "前の同時に使える数",
    "texts": "質問の数",
    "tokens": "1分のトークン", "total_yen": "請求額", "uyen": "額", "valid_from": "いつから", "version": "版", "weight": "順番の重み",
    "window": "期間", "window_start": "期間の始め", "with_content": "文を付けた", "words": "言葉の数", "yen": "額",
}  # fmt: skip
_NODES: Final[Mapping[str, str]] = {"town": "町", "section": "課", "person": "職員", "app": "アプリ", "model": "モデル"}
_VALUES: Final[Mapping[str, Mapping[str, str]]] = {
    "window": {str(w): words for w, words in PER_WORDS.items()},
    "node": _NODES,
    "role": ROLE_WORDS,
}
# A sum to compare by is told by its beginning; the whole of it is in the file.
_SUM_CHARACTERS: Final = 12
# Every person who ever was in the town has a name in it: the operator's people act in its chain, too.
_OUTSIDER: Final = "この町の外の人（事務局など）"
_ACTORS: Final[Mapping[str, str]] = {"operator": "事務局", "system": "システム", "command": "サーバーの命令"}


@routes.get("")
async def audit_page(
    office: OfficeContext,
    kind: str = "",
    login: Annotated[str, Query(max_length=100)] = "",
    since: str = "",
    until: str = "",
    before: str = "",
) -> Response:
    """Links, the newest first. since and until: days in Japan, both included."""
    typed = {"kind": kind, "login": login, "since": since, "until": until}
    problem, found, names = None, list[Link](), dict[str, str]()
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        try:
            number = clean_login(login) if login.strip() else ""
            person = await find_person(session, office.actor.tenant_id, number) if number else None
            if number and person is None:
                raise InvalidInput("その職員番号の人は、この町にいません。番号を確かめてください。", field="login")
            end = _day(until, "until")
            wanted = Wanted(
                kind=kind if kind in KINDS else "",
                person_id=person,
                since=_day(since, "since"),
                until=end + timedelta(days=1) if end else None,
                before=int(before) if before.isascii() and before.isdigit() and len(before) < 19 else None,
            )
            found = await read_links(session, office.actor.tenant_id, wanted, limit=SHOWN + 1)
            names = await names_of(session, office.actor.tenant_id, found)
        except InvalidInput as invalid:
            problem = invalid
    return await office.page(
        "console/audit.html",
        status=200 if problem is None else int(problem.status),
        rows=[_row(link, names) for link in found[:SHOWN]],
        next_before=found[SHOWN - 1].seq if len(found) > SHOWN else 0,
        is_newest=not before,
        kinds=[("", "すべて"), *((slug, words) for slug, (words, _) in KINDS.items())],
        typed=typed,
        problem=problem,
    )


def _day(text: str, field: str) -> datetime | None:
    """The beginning of a day in Japan. Raises `InvalidInput`."""
    if not text:
        return None
    day: datetime | None = None
    with suppress(ValueError):
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=JST)
    # Near the ends of what a date can hold there is no day after it, or none before it elsewhere.
    if day is None or not 2000 <= day.year < 2100:
        raise InvalidInput("2000年から2099年までの日付を、2027-04-01 の形で入れてください。", field=field)
    return day


def _row(link: Link, names: Mapping[str, str]) -> dict[str, Any]:
    """What the table shows of a link."""
    by = names.get(link.actor_id, _OUTSIDER) if link.actor_kind == "person" else _ACTORS.get(link.actor_kind, "")
    return {
        "seq": link.seq,
        "at": local(link.at),
        "by": by if link.actor_kind in ("person", "operator") else f"{by} {link.actor_id}".strip(),
        "did": ACTIONS.get(link.action, link.action),
        "action": link.action,
        "about": f"{_NODES[link.object_kind]} {link.object_id}"
        if link.object_kind in ("app", "model")
        else names.get(link.object_id, ""),
        "facts": "、".join(
            _fact(name, value, names) for name, value in sorted(link.facts.items()) if value is not None
        ),
    }


def _fact(name: str, value: object, names: Mapping[str, str]) -> str:
    """One fact in words: money in yen, a name that is kept in English by what it means."""
    if isinstance(value, bool):
        shown = "はい" if value else "いいえ"
    elif isinstance(value, int) and name.endswith("uyen"):
        shown = yen(value)
    elif isinstance(value, int):
        shown = f"{value:,}円" if name.endswith("yen") else f"{value:,}"
    elif name in ("root", "sha256"):
        shown = f"{str(value)[:_SUM_CHARACTERS]}…"
    else:
        shown = names.get(str(value)) or _VALUES.get(name, {}).get(str(value), str(value))
    return f"{_FACTS.get(name, name)}：{shown}"


@routes.post("/verify")
async def verify(office: OfficeContext) -> Response:
    """The whole chain as it lies in the database, by the same rules as an export."""

    async def work(_progress: Progress) -> Mapping[str, object]:
        try:
            return {"checked": await verify_chain(office.db, office.actor.tenant_id), "broken": ""}
        except AuditBroken as problem:
            return {"checked": None, "broken": problem.detail}

    return await office.work("監査の記録を確かめています", work, then="console/_audit_checked.html")


@routes.post("/export")
async def export(office: OfficeContext) -> Response:
    """The chain as one ZIP, which `kumiai audit verify --file` checks with nothing but the file."""
    make = office.export_chain
    if make is None:
        raise NotFound

    async def work(progress: Progress) -> Mapping[str, object]:
        return {"exported": await make(progress)}

    return await office.work("監査の記録をZIPにまとめています", work, then="console/_audit_exported.html")


@routes.get("/export/{chain}")
async def export_file(office: OfficeContext, chain: str) -> Response:
    """The file that the page told of, by its hash. Its length is told, so that a browser knows one that broke off."""
    path = None if office.chain_file is None else await office.chain_file(chain)
    if path is None:
        raise NotFound("まとめ直されたか、古くなって消えました。もう一度ZIPにまとめてください。")
    await office.tell_download("audit")
    name = f"audit-{office.actor.tenant_code}-{local(office.now):%Y%m%d}.zip"
    return FileResponse(path, media_type="application/zip", filename=name)
