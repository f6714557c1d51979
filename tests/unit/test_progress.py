"""How far a group is, as logs, errors and XComs say it."""

from __future__ import annotations

from event_triggers.event import Event
from event_triggers.ledger import Received
from event_triggers.progress import GroupProgress
from event_triggers.testing import MemoryQueue

QUEUE = MemoryQueue("queue")


def received(identity: str) -> Received:
    return Received("sqs", "stock", identity, identity, None, "t")


def group(**counts: int) -> GroupProgress:
    return GroupProgress({name: Event(QUEUE, count=count) for name, count in counts.items()})


def test_what_is_missing_says_how_far_it_is() -> None:
    progress = group(orders=1, shifts=3)
    assert progress.missing() == ["orders", "shifts (0 of 3)"]
    progress["shifts"].received = (received("a"),)
    progress["orders"].recording = 1
    assert progress.missing() == ["orders, came but not recorded yet", "shifts (1 of 3)"]
    assert progress.recording
    assert progress["shifts"].missing == 2


def test_a_message_that_is_held_under_another_id_is_held() -> None:
    progress = group(orders=2)
    progress["orders"].received = (received("m.7"),)
    assert [progress["orders"].holds(one) for one in ("m.7", "m.(?)", "m.8", "m")] == [True, True, False, False]


def test_what_is_done_is_not_missing() -> None:
    progress = group(received=2, by_hand=2, green=2)
    progress["received"].received = (received("a"), received("b"))
    progress["by_hand"].by_hand = "skipped"
    progress["green"].known = False
    assert progress.missing() == []
    assert [one.missing for one in progress] == [0, 0, 0]
    assert progress.lost == []
    progress["by_hand"].by_hand = "failed"
    assert progress.lost == ["by_hand"]


def test_what_the_xcom_says() -> None:
    progress = group(one=1, several=2, by_hand=2, nothing=1)
    progress["one"].received = (received("a"),)
    progress["several"].received = (received("b"),)
    progress["by_hand"].received = (received("c"),)
    progress["by_hand"].by_hand = "success"
    assert progress.outcomes() == {
        "one": received("a").facts(),
        "several": [received("b").facts()],
        "by_hand": {"marked_by_hand": "success", "messages": [received("c").facts()]},
    }
    assert progress.counts() == {"one": 1, "several": 1, "by_hand": 1}
    assert progress["one"].holds("a")
    assert not progress["one"].holds("b")
