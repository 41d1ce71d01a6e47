"""Isolation, tried out: one town's people and systems ask for another town's things by every address there is.

`kumiai isolation-report` runs it against an installation of its own; `tests/security` run the same code.
"""
