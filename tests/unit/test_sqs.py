"""SqsQueue's declaration, and reading what SQS sends."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from event_triggers.errors import InvalidEventError
from event_triggers.sources._shared import release_delay
from event_triggers.sources._sqs_wire import advice, chunks, is_gone, queue_name, region_of, to_message
from event_triggers.sources.base import load_source
from event_triggers.sources.sqs import SqsQueue


class TestDeclaration:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"queue": ""}, "name or the URL"),
            ({"queue": " "}, "name or the URL"),
            ({"queue": 7}, "name or the URL"),
            ({"queue": "arn:aws:sqs:us-east-1:1:q"}, "not the ARN"),
            ({"unmatched": "drop"}, "'release' or 'delete', not 'drop'"),
            ({"visibility_timeout": 0}, "visibility_timeout must be a whole number of seconds from 1 to 43200, not 0"),
            ({"visibility_timeout": 43201}, "not 43201"),
            ({"visibility_timeout": "60"}, "not '60'"),
            ({"visibility_timeout": True}, "not True"),
            ({"wait_time_seconds": 21}, "wait_time_seconds must be a whole number of seconds from 1 to 20, not 21"),
            ({"wait_time_seconds": 0.5}, "not 0.5"),
        ],
    )
    def test_mistakes_are_one_sentence(self, options: dict[str, Any], says: str) -> None:
        with pytest.raises(InvalidEventError, match=says) as caught:
            SqsQueue(**{"queue": "q", **options}).validate()
        assert "\n" not in str(caught.value)

    def test_templates_pass(self) -> None:
        SqsQueue("{{ var.value.queue }}", region="{{ params.region }}").validate()

    def test_survives_serialisation(self) -> None:
        source = SqsQueue("q", conn_id=None, region="eu-west-1", visibility_timeout=5, unmatched="delete")
        assert load_source(source.serialize()) == source

    def test_key_is_the_queue(self) -> None:
        source = SqsQueue("q")
        assert source.key("a") == source.key("b") == SqsQueue("q", visibility_timeout=5, unmatched="delete").key("a")
        others = [SqsQueue("p"), SqsQueue("q", region="eu-west-1"), SqsQueue("q", conn_id="other")]
        assert source.key("a") not in [other.key("a") for other in others]

    def test_name_and_label(self) -> None:
        assert SqsQueue("q.fifo").label == "sqs q.fifo"
        assert SqsQueue("https://sqs.eu-west-1.amazonaws.com/1/q").label == "sqs q"

    def test_imports_without_the_sdk(self) -> None:
        program = (
            "import sys; import event_triggers.sources.sqs; "
            "assert not {'aiobotocore', 'botocore', 'airflow'} & set(sys.modules), 'imported too early'"
        )
        subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("queue", "name", "region"),
    [
        ("stock", "stock", None),
        ("https://sqs.eu-west-1.amazonaws.com/123456789012/stock.fifo", "stock.fifo", "eu-west-1"),
        ("https://sqs.eu-west-1.amazonaws.com/123456789012/stock/", "stock", "eu-west-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/1/q", "q", "cn-north-1"),
        ("https://sqs-fips.us-gov-west-1.amazonaws.com/1/q", "q", "us-gov-west-1"),
        ("https://sqs.us-east-2.api.aws/1/q", "q", "us-east-2"),
        ("https://vpce-0a1b2c-3d.sqs.eu-central-1.vpce.amazonaws.com/1/q", "q", "eu-central-1"),
        ("https://eu-west-1.queue.amazonaws.com/1/q", "q", "eu-west-1"),
        ("https://queue.amazonaws.com/1/q", "q", "us-east-1"),
        ("http://localhost:9324/000000000000/q", "q", None),
        ("https://sqs.eu-west-1.amazonaws.com.example.org/1/q", "q", None),
    ],
)
def test_queue_urls(queue: str, name: str, region: str | None) -> None:
    assert queue_name(queue) == name
    assert region_of(queue) == region


def test_release_delays_grow_to_a_minute() -> None:
    assert [release_delay(attempt) for attempt in range(10)] == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert release_delay(10_000) == 60


def test_chunks() -> None:
    assert [len(chunk) for chunk in chunks(range(23))] == [10, 10, 3]
    assert list(chunks([])) == []


class TestReading:
    def test_the_least_that_a_server_may_send(self) -> None:
        message = to_message({"MessageId": "m", "ReceiptHandle": "r", "Body": "x"}, stream="q", now=5.0)
        assert (message.id, message.body, message.key, message.headers, message.timestamp) == (
            "m",
            b"x",
            None,
            (),
            None,
        )
        assert message.attempt == 1
        assert message.receipt.held

    def test_null_is_absent(self) -> None:
        system = {"MessageGroupId": None, "SentTimestamp": None, "ApproximateReceiveCount": "3"}
        attributes = {"a": {"DataType": "String", "StringValue": None, "BinaryValue": None}}
        raw = {
            "MessageId": "m",
            "ReceiptHandle": "r",
            "Body": None,
            "Attributes": system,
            "MessageAttributes": attributes,
        }
        message = to_message(raw, stream="q", now=0)
        assert (message.body, message.key, message.timestamp, message.attempt) == (b"", None, None, 3)
        assert message.headers == (("a", b""),)

    def test_bodies_are_utf8(self) -> None:
        message = to_message({"MessageId": "m", "ReceiptHandle": "r", "Body": "\u20ac\U0001f600"}, stream="q", now=0)
        assert message.body == "\u20ac\U0001f600".encode()

    def test_times_keep_their_milliseconds(self) -> None:
        raw = {"MessageId": "m", "ReceiptHandle": "r", "Attributes": {"SentTimestamp": "1700000000123"}}
        message = to_message(raw, stream="q", now=0)
        assert message.timestamp is not None
        assert message.timestamp.isoformat() == "2023-11-14T22:13:20.123000+00:00"


class TestErrors:
    def test_only_one_bounded_line_is_shown(self) -> None:
        text = advice({"Code": "SignatureDoesNotMatch", "Message": "No" + "!" * 999 + "\nhost:x\nsession token:SECRET"})
        assert "SECRET" not in text
        assert len(text) < 500

    @pytest.mark.parametrize("error", [{}, {"Code": "X"}, {"Message": "y"}, {"Code": "X", "Message": ""}])
    def test_scarce_answers(self, error: dict[str, str]) -> None:
        assert advice(error)

    @pytest.mark.parametrize("prefix", ["", "AWS.SimpleQueueService."])
    def test_gone(self, prefix: str) -> None:
        assert is_gone({"Code": prefix + "ReceiptHandleIsInvalid"})
        assert is_gone({"Code": prefix + "MessageNotInflight"})
        assert not is_gone({"Code": prefix + "InternalError"})


def test_attributes_without_a_value_are_left_out() -> None:
    """moto before 5.1.11 answers for a standard queue with a message group that is null."""
    raw = {"MessageId": "1", "ReceiptHandle": "r", "Body": "{}", "Attributes": {"MessageGroupId": None}}
    message = to_message(raw, stream="queue", now=0.0)
    assert message.headers == ()
    assert message.key is None
