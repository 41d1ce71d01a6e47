"""What an app is promised of its documents."""

from datetime import timedelta

import pytest
from sqlalchemy import text

from observability.problems import Conflict, InvalidInput, NotFound
from tenants.context import PersonId, SectionId, TenantContext, new_id
from tenants.documents import DocumentChanged, DocumentTooLarge, NewDocument, Viewer, fold
from tenants.vault import ContentUnreadable
from tests.integration.content.conftest import Content

clerk = PersonId(new_id())
colleague = PersonId(new_id())


async def test_a_stored_document_reads_back_the_same(content: Content) -> None:
    mine = content.documents_of(clerk)
    body = {"title": "敬老会のご案内", "numbers": [1, 2.5, None, True], "nested": {"髙": "﨑"}}
    made = await mine.create("draft", body)
    found = await mine.get(made.id)
    assert found == made
    assert found.body == body
    assert (found.version, found.owner_id, found.app) == (1, clerk, "chat")


async def test_other_tenants_document_is_not_found(content: Content) -> None:
    made = await content.documents_of(clerk).create("draft", {"a": 1}, of_town=True)
    assert (await content.documents_of(colleague).get(made.id)).id == made.id
    with pytest.raises(NotFound):
        await content.documents_of(clerk, town=content.other_town).get(made.id)


async def test_other_tenants_document_cannot_be_changed(content: Content) -> None:
    made = await content.documents_of(clerk).create("draft", {"a": 1}, of_town=True)
    stranger = content.documents.of(content.other_town, app="chat", viewer=None)
    for attempt in (
        stranger.update(made.id, {}, version=1),
        stranger.delete(made.id),
        stranger.purge(made.id),
        stranger.share(made.id),
        stranger.touch(made.id),
        stranger.versions(made.id),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert (await content.documents_of(clerk).get(made.id)).body == {"a": 1}


async def test_another_apps_document_is_not_found(content: Content) -> None:
    made = await content.documents_of(clerk).create("draft", {})
    with pytest.raises(NotFound):
        await content.documents_of(clerk, app="drafting").get(made.id)


async def test_another_persons_document_is_not_found(content: Content) -> None:
    made = await content.documents_of(clerk).create("draft", {})
    with pytest.raises(NotFound):
        await content.documents_of(colleague).get(made.id)


async def test_a_document_of_the_town_is_seen_by_all_in_it(content: Content) -> None:
    made = await content.documents_of(clerk).create("prompt", {"t": 1}, of_town=True)
    assert made.owner_id is None
    assert [d.id for d in (await content.documents_of(colleague).list("prompt")).items] == [made.id]


async def test_a_shared_document_and_what_hangs_on_it_can_be_read_not_changed(content: Content) -> None:
    mine, theirs = content.documents_of(clerk), content.documents_of(colleague)
    talk = await mine.create("conversation", {"t": "相談"})
    line = await mine.create("message", {"text": "本文"}, parent=talk.id)
    with pytest.raises(NotFound):
        await theirs.list("message", parent=talk.id)
    await mine.share(talk.id)
    assert (await theirs.get(line.id)).body == {"text": "本文"}
    assert [d.id for d in (await theirs.list("message", parent=talk.id)).items] == [line.id]
    assert [d.id for d in (await theirs.list("conversation")).items] == [talk.id]
    with pytest.raises(NotFound):
        await theirs.update(talk.id, {}, version=1)
    await mine.unshare(talk.id)
    with pytest.raises(NotFound):
        await theirs.get(line.id)


async def test_sharing_with_a_section_shows_it_to_that_section_only(content: Content) -> None:
    section, other = SectionId(new_id()), SectionId(new_id())
    talk = await content.documents_of(clerk).create("conversation", {})
    await content.documents_of(clerk).share(talk.id, section_id=section)
    inside = content.documents.of(content.town, app="chat", viewer=Viewer(colleague, section))
    outside = content.documents.of(content.town, app="chat", viewer=Viewer(colleague, other))
    assert (await inside.get(talk.id)).id == talk.id
    with pytest.raises(NotFound):
        await outside.get(talk.id)


async def test_sharing_does_not_reveal_what_others_hung_on_the_document(content: Content) -> None:
    talk = await content.documents_of(clerk).create("conversation", {})
    await content.documents_of(clerk).share(talk.id)
    note = await content.documents_of(colleague).create("message", {"text": "私のメモ"}, parent=talk.id)
    third = content.documents_of(PersonId(new_id()))
    with pytest.raises(NotFound):
        await third.get(note.id)
    assert (await third.list("message", parent=talk.id)).items == ()


async def test_an_update_with_an_old_version_is_refused_and_says_the_new_one(content: Content) -> None:
    mine = content.documents_of(clerk)
    made = await mine.create("draft", {"n": 1})
    assert (await mine.update(made.id, {"n": 2}, version=1)).version == 2
    with pytest.raises(DocumentChanged) as refused:
        await mine.update(made.id, {"n": 3}, version=1)
    assert refused.value.extensions["version"] == 2
    assert (await mine.get(made.id)).body == {"n": 2}


async def test_kept_versions_stay_readable(content: Content) -> None:
    mine = content.documents_of(clerk)
    made = await mine.create("draft", {"n": 1})
    await mine.update(made.id, {"n": 2}, version=1, keep_version=True)
    await mine.update(made.id, {"n": 3}, version=2)
    assert await mine.versions(made.id) == (3, 1)
    assert await mine.version(made.id, 1) == {"n": 1}
    assert await mine.version(made.id, 3) == {"n": 3}
    with pytest.raises(NotFound):
        await mine.version(made.id, 2)


async def test_declared_fields_are_looked_up_by_equality(content: Content) -> None:
    mine = content.documents_of(clerk)
    a = await mine.create("conversation", {}, index={"folder": "広報", "tag": ["夏", "祭り"]})
    await mine.create("conversation", {}, index={"folder": "税務"})
    assert [d.id for d in (await mine.list("conversation", index={"folder": "広報"})).items] == [a.id]
    assert [d.id for d in (await mine.list("conversation", index={"folder": "広報", "tag": "祭り"})).items] == [a.id]
    assert await mine.count("conversation", index={"tag": "冬"}) == 0
    await mine.update(a.id, {}, version=1, index={"folder": "税務"})
    assert await mine.count("conversation", index={"folder": "税務"}) == 2
    assert await mine.count("conversation", index={"folder": "広報"}) == 0


async def test_equal_values_in_two_towns_have_different_hashes(content: Content) -> None:
    await content.documents_of(clerk).create("c", {}, index={"folder": "広報"})
    await content.documents_of(clerk, town=content.other_town).create("c", {}, index={"folder": "広報"})
    hashes = []
    for town in (content.town, content.other_town):
        async with content.db.content_session(town) as session:
            hashes += (await session.exec(text("select value_hash from content.document_index"))).all()  # type: ignore[call-overload]
    assert len(hashes) >= 2
    assert len({h[0] for h in hashes}) == 2


async def test_pages_follow_each_other_without_gap_or_repeat(content: Content) -> None:
    mine = content.documents_of(clerk)
    made = [(await mine.create("draft", {"n": n})).id for n in range(7)]
    seen = []
    cursor = None
    while True:
        page = await mine.list("draft", order="newest", limit=3, cursor=cursor)
        seen += [d.id for d in page.items]
        await mine.create("draft", {"late": True})
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == made[::-1]


async def test_oldest_first_is_the_order_of_writing(content: Content) -> None:
    mine = content.documents_of(clerk)
    parent = await mine.create("conversation", {})
    made = [(await mine.create("message", {"n": n}, parent=parent.id)).id for n in range(5)]
    first = await mine.list("message", parent=parent.id, order="oldest", limit=3)
    rest = await mine.list("message", parent=parent.id, order="oldest", limit=3, cursor=first.next_cursor)
    assert [d.id for d in (*first.items, *rest.items)] == made


async def test_a_cursor_of_another_list_is_refused(content: Content) -> None:
    mine = content.documents_of(clerk)
    for n in range(2):
        await mine.create("draft", {"n": n})
    page = await mine.list("draft", order="oldest", limit=1)
    for cursor in (page.next_cursor, "%%%", "YWJj"):
        with pytest.raises(InvalidInput):
            await mine.list("draft", order="newest", cursor=cursor)


async def test_an_update_without_touch_does_not_reorder(content: Content) -> None:
    mine = content.documents_of(clerk)
    old = await mine.create("c", {"t": "古い"})
    new = await mine.create("c", {"t": "新しい"})
    await mine.update(old.id, {"t": "改名"}, version=1, touch=False)
    assert [d.id for d in (await mine.list("c")).items] == [new.id, old.id]
    await mine.touch(old.id)
    assert [d.id for d in (await mine.list("c")).items] == [old.id, new.id]


async def test_a_deleted_document_is_in_the_trash_and_comes_back_whole(content: Content) -> None:
    mine = content.documents_of(clerk)
    talk = await mine.create("c", {})
    line = await mine.create("m", {}, parent=talk.id)
    gone_before = await mine.create("m", {}, parent=talk.id)
    await mine.delete(gone_before.id)
    await mine.delete(talk.id)
    for id in (talk.id, line.id):
        with pytest.raises(NotFound):
            await mine.get(id)
    assert [d.id for d in (await mine.list("c", deleted=True)).items] == [talk.id]
    await mine.restore(talk.id)
    assert (await mine.get(line.id)).purge_after is None
    with pytest.raises(NotFound):
        await mine.get(gone_before.id)


async def test_the_trash_is_emptied_when_its_days_are_over(content: Content) -> None:
    mine = content.documents_of(clerk)
    talk = await mine.create("c", {}, index={"folder": "x"})
    await mine.create("m", {}, parent=talk.id)
    await mine.update(talk.id, {"n": 2}, version=1, keep_version=True)
    await mine.delete(talk.id, keep_days=30)
    content.clock.pass_days(29)
    assert await content.documents.purge_due(content.town) == 0
    content.clock.pass_days(2)
    assert await content.documents.purge_due(content.other_town) == 0
    assert await content.documents.purge_due(content.town) == 2
    assert await content.documents.count(content.town) == 0
    async with content.db.content_session(content.town) as session:
        for table in ("document_index", "document_version"):
            left = (await session.exec(text(f"select count(*) from content.{table}"))).one()  # type: ignore[call-overload]
            assert left[0] == 0


async def test_retention_removes_what_was_not_touched_since(content: Content) -> None:
    mine = content.documents_of(clerk)
    old = await mine.create("c", {})
    await mine.create("m", {}, parent=old.id)
    content.clock.pass_days(400)
    new = await mine.create("c", {})
    limit = content.clock.now
    content.clock.pass_days(-1)
    assert await content.documents.expire(content.town, app="chat", older_than=content.clock.now) == 2
    assert await content.documents.expire(content.town, app="drafting", older_than=limit) == 0
    assert [d.id for d in (await mine.list("c")).items] == [new.id]


async def test_search_ignores_width_case_and_compatibility_forms(content: Content) -> None:
    mine = content.documents_of(clerk)
    hit = await mine.create("m", {"text": "ｶﾞｽ料金とＡＢＣ商店の㈱について"})
    await mine.create("m", {"text": "関係のない話"})
    await content.documents_of(colleague).create("m", {"text": "ガス料金 abc"})
    found = await mine.search("ガス abc （株）", kinds=["m"])
    assert [h.document.id for h in found.hits] == [hit.id]
    assert "ガス料金" in found.hits[0].excerpt
    assert (found.scanned, found.total, found.next_cursor) == (2, 2, None)


async def test_search_reads_only_the_fields_it_is_told(content: Content) -> None:
    mine = content.documents_of(clerk)
    await mine.create("m", {"role": "user", "text": "夏祭りの案内"})
    asked = await mine.create("m", {"role": "assistant", "text": "user の欄に名前を書きます"})
    found = await mine.search("user", kinds=["m"], fields=["text"])
    assert [h.document.id for h in found.hits] == [asked.id]


async def test_search_for_any_word_says_which_it_found(content: Content) -> None:
    mine = content.documents_of(clerk)
    one = await mine.create("m", {"text": "避難所の段差"})
    two = await mine.create("m", {"text": "ＫＡＷＡ地区の避難所"})
    await mine.create("m", {"text": "関係のない話"})
    found = await mine.search("段差 kawa", kinds=["m"], any_word=True)
    assert {h.document.id: h.words for h in found.hits} == {one.id: {"段差"}, two.id: {"kawa"}}
    assert (await mine.search("段差 kawa", kinds=["m"])).hits == ()


async def test_what_was_hung_on_a_document_goes_with_it(content: Content) -> None:
    mine = content.documents_of(clerk)
    message = await mine.create("m", {})
    file = await mine.create("file", {}, purge_after=content.clock.now + timedelta(days=1))
    await mine.hang([file.id], message.id)
    content.clock.pass_days(2)
    assert await content.documents.purge_due(content.town) == 0
    assert (await mine.get(file.id)).parent_id == message.id
    await mine.delete(message.id)
    with pytest.raises(NotFound):
        await mine.get(file.id)


async def test_another_persons_document_cannot_be_hung_on_ones_own(content: Content) -> None:
    mine = content.documents_of(clerk)
    message = await mine.create("m", {})
    theirs = await content.documents_of(colleague).create("file", {})
    with pytest.raises(NotFound):
        await mine.hang([theirs.id], message.id)
    assert (await content.documents_of(colleague).get(theirs.id)).parent_id is None


async def test_search_goes_on_from_where_it_stopped(content: Content) -> None:
    mine = content.documents_of(clerk)
    made = await mine.create_many([NewDocument("m", {"text": f"夏祭り {n}"}) for n in range(5)])
    seen = []
    cursor = None
    while True:
        found = await mine.search("夏祭り", kinds=["m"], limit=2, cursor=cursor)
        seen += [h.document.id for h in found.hits]
        cursor = found.next_cursor
        if cursor is None:
            break
    assert sorted(seen) == sorted(d.id for d in made)
    assert len(seen) == 5


async def test_search_reports_progress_and_stops_at_its_limit(content: Content) -> None:
    mine = content.documents_of(clerk)
    await mine.create_many([NewDocument("m", {"n": str(n)}) for n in range(250)])
    steps: list[tuple[int, int]] = []
    found = await mine.search("ない", kinds=["m"], scan_limit=200, on_progress=lambda a, b: steps.append((a, b)))
    assert steps == [(100, 250), (200, 250)]
    assert found.next_cursor is not None
    rest = await mine.search("249", kinds=["m"], cursor=found.next_cursor)
    assert rest.scanned == 50


async def test_create_many_stores_all_or_none(content: Content) -> None:
    mine = content.documents_of(clerk)
    first = await mine.create("m", {})
    with pytest.raises(Conflict):
        await mine.create_many([NewDocument("m", {}), NewDocument("m", {}, id=first.id)])
    assert await mine.count("m") == 1


async def test_a_parent_may_be_made_in_the_same_call(content: Content) -> None:
    mine = content.documents_of(clerk)
    talk = new_id()
    await mine.create_many([NewDocument("c", {}, id=talk), NewDocument("m", {}, parent=talk)])
    assert len((await mine.list("m", parent=talk)).items) == 1


async def test_a_document_beyond_the_limit_is_refused(content: Content) -> None:
    with pytest.raises(DocumentTooLarge):
        await content.documents_of(clerk).create("m", {"t": "あ" * 2_000_000})
    assert await content.documents.count(content.town) == 0


@pytest.mark.parametrize("moved", ["row", "version"])
async def test_a_cipher_moved_to_another_place_does_not_open(content: Content, moved: str) -> None:
    mine = content.documents_of(clerk)
    a = await mine.create("m", {"t": "a"})
    b = await mine.create("m", {"t": "b"})
    async with content.db.content_session(content.town) as session:
        if moved == "row":
            statement = (
                "update content.document set cipher = (select cipher from content.document where id = :a) where id = :b"
            )
        else:
            statement = "update content.document set version = 2 where id in (:b)"
        ids = {"a": a.id, "b": b.id} if moved == "row" else {"b": b.id}
        if content.db.is_sqlite:
            ids = {k: v.hex for k, v in ids.items()}  # type: ignore[misc]
        await session.exec(text(statement).bindparams(**ids))  # type: ignore[call-overload]
    with pytest.raises(ContentUnreadable):
        await mine.get(b.id)
    assert (await mine.get(a.id)).body == {"t": "a"}


async def test_an_erased_person_leaves_nothing_behind(content: Content) -> None:
    await content.documents_of(clerk).create("m", {})
    kept = await content.documents_of(colleague).create("m", {})
    assert await content.documents.erase_person(content.town, clerk) == 1
    assert [d.id for d in (await content.documents_of(colleague).list("m")).items] == [kept.id]


async def test_a_child_without_its_parent_is_swept(content: Content) -> None:
    mine = content.documents_of(clerk)
    talk = await mine.create("c", {})
    await mine.create("m", {}, parent=talk.id)
    async with content.db.content_session(content.town) as session:
        id = talk.id.hex if content.db.is_sqlite else talk.id
        await session.exec(text("delete from content.document where id = :i").bindparams(i=id))  # type: ignore[call-overload]
    assert await content.documents.sweep(content.town) == 1
    assert await content.documents.count(content.town) == 0


async def test_erasing_a_town_leaves_the_other_one(content: Content) -> None:
    await content.documents_of(clerk).create("m", {}, index={"f": "v"})
    other: TenantContext = content.other_town
    kept = await content.documents_of(clerk, town=other).create("m", {"t": "残る"})
    assert await content.documents.erase(content.town) == 1
    assert await content.documents.count(content.town) == 0
    assert (await content.documents_of(clerk, town=other).get(kept.id)).body == {"t": "残る"}


def test_folding_joins_half_width_kana_with_their_marks() -> None:
    assert fold("ﾊﾟﾝﾌﾚｯﾄ") == fold("パンフレット")
