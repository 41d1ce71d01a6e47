"""Presentations: slides in their order, and what stands beside them."""

from gateway.reading import PartState, Reading, read_file
from tests.unit.reading.files import NAMESPACES, pptx, relationships, shape, slide

TABLE = (
    '<p:graphicFrame><p:nvGraphicFramePr><p:cNvPr id="4" name="t"/></p:nvGraphicFramePr><a:graphic><a:graphicData>'
    "<a:tbl>{}</a:tbl></a:graphicData></a:graphic></p:graphicFrame>"
).format(
    "".join(
        "<a:tr>"
        + "".join(f"<a:tc><a:txBody><a:p><a:r><a:t>{c}</a:t></a:r></a:p></a:txBody></a:tc>" for c in row)
        + "</a:tr>"
        for row in (("区分", "人数"), ("申込", "12"), ("決定", "9"))
    )
)


def read(*slides: bytes, **more: bytes) -> Reading:
    return read_file("説明会.pptx", pptx(list(slides), {k.replace("__", "/"): v for k, v in more.items()}))


def test_slides_are_read_in_the_order_of_the_presentation() -> None:
    order = relationships(("rId0", "slide", "slides/slide2.xml"), ("rId1", "slide", "slides/slide1.xml"))
    made = pptx(
        [slide(shape("あとの話")), slide(shape("はじめの話\n二行目"))], {"ppt/_rels/presentation.xml.rels": order}
    )
    reading = read_file("説明会.pptx", made)
    assert reading.text == "【スライド1】\nはじめの話\n二行目\n\n【スライド2】\nあとの話"
    assert reading.summary == "スライド2枚を読み取りました（文字化けなし）"
    assert not reading.is_doubtful and not reading.has_unread


def test_tables_are_tables() -> None:
    reading = read(slide(shape("申込の状況"), TABLE))
    [table] = reading.tables
    assert table.columns == ("区分", "人数") and [row.cells for row in table.rows] == [("申込", "12"), ("決定", "9")]
    assert "申込 | 12\n決定 | 9" in reading.text


def test_a_hidden_slide_is_read_and_said_to_be_hidden() -> None:
    reading = read(slide(shape("表")), slide(shape("裏の数字"), show="0"))
    assert [p.state for p in reading.parts] == [PartState.OK, PartState.HIDDEN]
    assert "裏の数字" in reading.text
    assert [w.code for w in reading.warnings] == ["hidden-slide"]
    assert "非表示のスライド1枚" in reading.summary


def test_notes_and_comments_are_parts_of_their_own() -> None:
    reading = read_file(
        "説明会.pptx",
        pptx(
            [slide(shape("表題"))],
            {
                "ppt/slides/_rels/slide1.xml.rels": relationships(
                    ("rId1", "notesSlide", "../notesSlides/notesSlide1.xml"),
                    ("rId2", "comments", "../comments/comment1.xml"),
                ),
                "ppt/notesSlides/notesSlide1.xml": slide(
                    shape("ここで間をとる"), shape("3", frame="sldNum"), root="notes"
                ),
                "ppt/comments/comment1.xml": f'<p:cmLst {NAMESPACES}><p:cm authorId="0"><p:text>数字を確認</p:text></p:cm></p:cmLst>'.encode(),
                "ppt/commentAuthors.xml": f'<p:cmAuthorLst {NAMESPACES}><p:cmAuthor id="0" name="担当"/></p:cmAuthorLst>'.encode(),
            },
        ),
    )
    assert {p.label: p.text for p in reading.parts} == {
        "スライド1": "表題",
        "スライド1のノート": "ここで間をとる",
        "スライド1のコメント": "（担当）数字を確認",
    }
    assert {f.code for f in reading.findings} == {"notes", "comment"}


def test_pictures_are_said_to_be_unread() -> None:
    picture = '<p:pic><p:nvPicPr><p:cNvPr id="3" name="p" descr="庁舎の写真"/></p:nvPicPr></p:pic>'
    reading = read(slide(picture))
    assert reading.has_unread and "画像だけのスライド" in reading.warnings[0].words
    assert "庁舎の写真" in reading.text
