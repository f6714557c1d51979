"""What is logged and raised: one printable line each, whatever others have put into it, and no login of any address."""

from __future__ import annotations

import ast
import importlib.util
import logging
import pkgutil
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

import event_triggers
from event_triggers.errors import AirflowApiError, ConfigurationError, ConnectionMissingError, StreamError
from event_triggers.ledger import Received
from event_triggers.message import Message
from event_triggers.subscription import Subscription
from event_triggers.text import LINE_LIMIT, one_line, plain_logger, storable, without_credentials
from event_triggers.verdict import Status, Verdict

FORGED = "orders\r\n[2030-01-01] INFO - all is well \x1b[2J\u202e\u2066\u200b\x00\ud800"
PLAIN = "orders  [2030-01-01] INFO - all is well \\u001b[2J\\u202e\\u2066\\u200b\\u0000\\ud800"


def modules() -> list[str]:
    found = pkgutil.walk_packages(event_triggers.__path__, "event_triggers.")
    return sorted(one.name for one in found if ".testing" not in one.name)


@pytest.mark.parametrize("name", modules())
def test_every_module_logs_plain_lines_only(name: str) -> None:
    """All of them by the same few words, so that none can be forgotten."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    path = Path(spec.origin or "")
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    made = [ast.unparse(call) for call in calls if ast.unparse(call.func).endswith("getLogger")]
    if name == "event_triggers.text":
        assert made == ["logging.getLogger(name)"]
    elif name == "event_triggers.sources._kafka_client":
        assert made == ["logging.getLogger(create_conn.__module__)"], "aiokafka's own, to keep logins out of it"
    elif name == "event_triggers.log_channel":
        assert made == ["logging.getLogger()"], "the root, whose handlers it looks through"
    else:
        assert made == []


@pytest.fixture
def log() -> logging.Logger:
    return plain_logger("event_triggers.a_test")


def test_no_argument_forges_a_line(log: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    log.error("%s: %s at %r", FORGED, ValueError(FORGED), FORGED)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{PLAIN}: {PLAIN} at 'orders\\r\\n")
    assert record.getMessage().isprintable()


@given(st.text(), st.text(), st.binary(max_size=50))
def test_whatever_it_is_called_with(text: str, argument: str, body: bytes) -> None:
    lines: list[str] = []
    log = plain_logger("event_triggers.another_test")
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    log.propagate = False
    message = Message("source", text, argument, argument, body, key=body, headers=((text, body),))
    log.error("%s %s %s", message, argument, StreamError(text))
    Subscription("group").tell(logging.ERROR, text.replace("%", "%%"))
    log.removeHandler(handler)
    assert all(line.isprintable() and len(line) <= LINE_LIMIT for line in lines)
    assert str(StreamError(f"{text}{argument}")).isprintable()


class Evil(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_what_cannot_be_shown_is_no_error_of_the_log(log: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    log.error("failed: %s", Evil())
    log.error("%d", "no number")
    assert [r.getMessage() for r in caplog.records] == [
        "failed: %s (its details cannot be shown: RuntimeError)",
        "%d (its details cannot be shown: TypeError)",
    ]


def fail() -> None:
    try:
        int(f"{FORGED} http://me:pw@host")
    except ValueError as error:
        raise Evil from error


def test_a_traceback_shows_where_and_forges_nothing(log: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    try:
        fail()
    except Evil:
        log.exception("%s: a mistake", FORGED)
    first, *lines = caplog.records[0].getMessage().split("\n")
    assert first == f"{PLAIN}: a mistake"
    assert all(line.isprintable() for line in lines)
    assert "Evil: (its text cannot be had: RuntimeError)" in lines
    assert any(line.startswith("ValueError: invalid literal for int()") and "http://***@host" in line for line in lines)
    assert sum("in fail" in line for line in lines) == 2, "where it was raised, and its cause"
    assert caplog.records[0].exc_info is None, "whoever formats it would print the raw texts below"


@pytest.mark.parametrize(
    "error", [StreamError(FORGED), ConfigurationError(FORGED), AirflowApiError(FORGED, status=500)]
)
def test_errors_are_plain(error: Exception) -> None:
    assert str(error) == PLAIN
    assert repr(error).isprintable()
    assert str(ConnectionMissingError(FORGED)).isprintable()
    assert Verdict(Status.TIMEOUT, text=FORGED).text == PLAIN, "a sensor's error is made of it"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("at https://me:p4ss@host/path now", "at https://***@host/path now"),
        ("amqp://token@host", "amqp://***@host"),
        ("http://me:with/slash@host:1/x", "http://***@host:1/x"),
        ("'http://a:b@one', 'http://c:d@two'", "'http://***@one', 'http://***@two'"),
        ("http://host/path and me@example.com", "http://host/path and me@example.com"),
    ],
)
def test_addresses_lose_their_logins(text: str, plain: str) -> None:
    assert without_credentials(text) == plain
    assert str(StreamError(text)) == plain
    assert one_line(text) == plain


@given(st.text())
def test_what_is_kept_can_be_stored_and_stays_the_same(text: str) -> None:
    kept = storable(text)
    assert "\0" not in kept
    kept.encode("utf-8")
    assert storable(kept) == kept
    if "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text):
        assert kept == text


def test_facts_hold_nothing_that_a_database_refuses() -> None:
    one = Received("memory", "a\0", "b\ud800", "c\0", None, "t")
    assert (one.stream, one.position, one.id) == ("a\\u0000", "b\\ud800", "c\\u0000")
    assert Received.from_facts(one.facts()) == one
