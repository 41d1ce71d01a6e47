"""Log lines: where something happened and how often, never what a message, a value or a parser's error quotes."""

import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from observability.logging import CONTENT_KEYS, configure_logging

CANARY = "柘榴カナリアQ7"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Reads what was logged; the run's own logging is put back afterwards."""
    root = logging.getLogger()
    handlers, level, events = root.handlers[:], root.level, structlog.get_config()
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    configure_logging(process="test")
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    root.handlers[:], root.level = handlers, level
    structlog.configure(**events)
    structlog.contextvars.clear_contextvars()


def test_event_is_one_line_of_json(lines: Any) -> None:
    structlog.get_logger("a").info("tokens_reserved", tokens=3)
    [line] = lines()
    assert (line["event"], line["tokens"], line["level"], line["process"]) == ("tokens_reserved", 3, "info", "test")
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize("key", sorted(CONTENT_KEYS))
def test_what_may_be_content_is_dropped(lines: Any, key: str) -> None:
    structlog.get_logger("a").info("something", **{key: CANARY})
    [line] = lines()
    assert line[key] == "[dropped]"


@pytest.mark.parametrize("library", [False, True])
def test_an_exception_says_where_and_not_what(lines: Any, *, library: bool) -> None:
    try:
        json.loads("{" + CANARY)
        raise AssertionError
    except ValueError as error:
        problem = ValueError(f"cannot read {CANARY}")
        problem.__cause__ = error
        log: Any = logging.getLogger("library") if library else structlog.get_logger("a")
        try:
            raise problem
        except ValueError:
            log.exception("reading_failed")
    [line] = lines()
    assert line["exception"]["type"] == "ValueError"
    assert line["exception"]["at"]
    assert CANARY not in json.dumps(line, ensure_ascii=False)


def test_a_library_s_warning_is_json_too(lines: Any) -> None:
    logging.getLogger("library").warning("slow: %s ms", 12)
    [line] = lines()
    assert (line["event"], line["level"]) == ("slow: 12 ms", "warning")


@pytest.mark.parametrize("value", [2**70, "半\ud800", {1: 2}])
def test_what_no_line_can_carry_breaks_nothing(lines: Any, value: object) -> None:
    structlog.get_logger("a").warning("odd", value=value)
    [line] = lines()
    assert (line["event"], line["level"]) == ("odd", "warning")


def test_what_a_thread_of_the_tests_says_is_kept_with_the_test_and_printed_nowhere(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    thread = threading.Thread(target=lambda: structlog.get_logger("a").info("tokens_reserved", tokens=3))
    thread.start()
    thread.join()
    assert [record.getMessage().split() for record in caplog.records] == [["tokens_reserved", "tokens=3"]]
    assert capfd.readouterr() == ("", "")
