"""Why a file could not be read, each with what the clerk can do about it."""

from http import HTTPStatus

from observability.problems import Problem


class CannotReadFile(Problem):
    """The family of all that can go wrong with an attached file."""

    type = "urn:problem:reading:cannot-read"
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    title = "ファイルを読み取れませんでした"


class EmptyFile(CannotReadFile):
    type = "urn:problem:reading:empty-file"
    title = "中身が空のファイルです"


class CorruptFile(CannotReadFile):
    type = "urn:problem:reading:corrupt-file"
    title = "ファイルが壊れているため読み取れません"


class FileTooLarge(CannotReadFile):
    type = "urn:problem:reading:file-too-large"
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    title = "ファイルが大きすぎます"


def check_characters(characters: int, most: int) -> None:
    """Raises `FileTooLarge`."""
    if characters > most:
        raise FileTooLarge(f"{most:,}文字までに分けて添付してください。", limit_characters=most)


class SuspiciousFile(CannotReadFile):
    """Built to exhaust or fool its reader: an archive bomb, an XML bomb, two members of one name."""

    type = "urn:problem:reading:suspicious-file"
    title = "安全に開けない作りのファイルです"


class ProtectedFile(CannotReadFile):
    type = "urn:problem:reading:protected-file"
    title = "パスワードが設定されているため読み取れません"


class WrongExtension(CannotReadFile):
    type = "urn:problem:reading:wrong-extension"
    title = "ファイルの名前と中身が合っていません"


class OldFormat(CannotReadFile):
    type = "urn:problem:reading:old-format"
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    title = "この形式は読み取れません"


class UnsupportedFormat(CannotReadFile):
    type = "urn:problem:reading:unsupported-format"
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    title = "この形式のファイルには対応していません"


class UnknownEncoding(CannotReadFile):
    type = "urn:problem:reading:unknown-encoding"
    title = "文字コードが分からないため読み取れません"


class ReadingTookTooLong(CannotReadFile):
    type = "urn:problem:reading:took-too-long"
    title = "読み取りに時間がかかりすぎたため、途中でやめました"


class CardSeen(CannotReadFile):
    """A number card on a picture, though a digit may have been read wrongly: the law lets nobody keep a copy of it here."""

    type = "urn:problem:reading:card-seen"
    title = "マイナンバーカードと思われる画像なので、受け取りませんでした"
