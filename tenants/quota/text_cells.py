"""Cells of a CSV that a spreadsheet will open."""


def text_cell(value: object) -> object:
    """A name that would be run as a formula is kept as text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
