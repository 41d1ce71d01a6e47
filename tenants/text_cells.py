"""Cells of a CSV that a spreadsheet will open."""

import re
from typing import Final

# What a spreadsheet takes for the beginning of a formula: also after a line's end, and in full width, which Japanese
# input methods write. A sign in full width alone stands for "none" in our own tables.
_FORMULA: Final = re.compile(r"[=+\-@\t\r\n]|[＝＋－＠].", re.DOTALL)


def text_cell(value: object) -> object:
    """A text that would be run as a formula is kept as text, by an apostrophe; everything else is as it was."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value
