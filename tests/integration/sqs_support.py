"""What the SQS tests share: openings, a queue of one's own, and a gate before a server that can answer in its place."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
from aiohttp import web

from event_triggers.clock import Clock, SystemClock
from event_triggers.errors import ConnectionMissingError
from event_triggers.message import Message
from event_triggers.sources.base import BrokerConnection, Opening, Outcome, Settlement, Stream
from event_triggers.sources.sqs import SqsQueue
from event_triggers.testing import ManualClock
from servers.sqs import SqsServer

with contextlib.suppress(ImportError):
    # Takes seconds on a busy machine, the first time: better here than within a test's patience.
    import airflow.providers.amazon.aws.hooks.sqs  # noqa: F401

__all__ = ["PATIENCE", "Gate", "Queue", "asleep", "opening", "pull", "settle"]

PATIENCE = 40.0
"""Seconds that any single step may take at most."""


def opening(endpoint: str, *, clock: Clock | None = None, **connection: Any) -> Opening:
    """An opening in which the connection ``somewhere`` leads to this endpoint, and no other is defined."""

    async def look_up(conn_id: str) -> BrokerConnection:
        if conn_id != "somewhere":
            raise ConnectionMissingError(conn_id)
        extra = {"region_name": "us-east-1", "endpoint_url": endpoint, **connection.get("extra", {})}
        given = {"login": "access", "password": "secret", **connection}
        given.pop("extra", None)
        return BrokerConnection(conn_id, "aws", extra=extra, **given)

    return Opening(connection=look_up, clock=clock or SystemClock())


async def asleep(clock: ManualClock, count: int = 1) -> None:
    """Return when so many tasks sleep."""
    with anyio.fail_after(PATIENCE):
        await clock.wait_for_sleepers(count)


async def pull(stream: Stream, count: int = 1) -> list[Message]:
    """Pull batches until ``count`` messages are there."""
    messages: list[Message] = []
    batches = stream.__aiter__()
    with anyio.fail_after(PATIENCE):
        while len(messages) < count:
            messages += await batches.__anext__()
    return messages


async def settle(stream: Stream, *messages: Message, outcome: Outcome = Outcome.ACCEPTED) -> None:
    with anyio.fail_after(PATIENCE):
        await stream.settle([Settlement(message, outcome) for message in messages])


class Queue:
    """A fresh queue of a server, and what a producer and another consumer do with it."""

    def __init__(self, server: SqsServer, *, fifo: bool = False, **attributes: str) -> None:
        self.server = server
        self.name = f"test-{uuid.uuid4().hex}" + (".fifo" if fifo else "")
        self.url = server.create_queue(self.name, **attributes)

    @property
    def arn(self) -> str:
        attributes = self.server.client().get_queue_attributes(QueueUrl=self.url, AttributeNames=["QueueArn"])
        return str(attributes["Attributes"]["QueueArn"])

    def source(self, **options: Any) -> SqsQueue:
        return SqsQueue(self.name, **{"conn_id": "somewhere", "wait_time_seconds": 1, **options})

    async def call(self, operation: str, **arguments: Any) -> Any:
        client = self.server.client()
        return await anyio.to_thread.run_sync(lambda: getattr(client, operation)(QueueUrl=self.url, **arguments))

    async def send(self, *bodies: str, group: str | None = None, **arguments: Any) -> list[str]:
        """Send in this order; the message ids."""
        ids = []
        for body in bodies:
            if group is not None:
                arguments |= {"MessageGroupId": group, "MessageDeduplicationId": uuid.uuid4().hex}
            ids.append((await self.call("send_message", MessageBody=body, **arguments))["MessageId"])
        return ids

    async def receive(self, seconds: int, *, most: int = 10) -> list[dict[str, Any]]:
        """What another consumer gets in one long poll; it hides it for a second only."""
        answer = await self.call(
            "receive_message", WaitTimeSeconds=seconds, MaxNumberOfMessages=most, VisibilityTimeout=1
        )
        return list(answer.get("Messages", ()))

    async def kept(self, count: int) -> None:
        """Return when the queue keeps this many messages."""
        with anyio.fail_after(PATIENCE):
            while await anyio.to_thread.run_sync(self.server.kept, self.url) != count:  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.05)


Edit = Callable[[dict[str, Any]], dict[str, Any]]


class Gate:
    """Stands before a server. It notes every request, and can answer in the server's place or change its answers."""

    def __init__(self, target: str, session: aiohttp.ClientSession) -> None:
        self._target = target
        self._session = session
        self._planned: dict[str, list[web.Response]] = {}
        self._edits: dict[str, list[Edit]] = {}
        self._changed = asyncio.Condition()
        self.endpoint = ""
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.signers: list[tuple[str, str]] = []
        """Access key and region that each request was signed with."""
        self.most_polls = 0
        """How many long polls were under way at the same time, at most."""
        self._polls = 0

    def refuse(self, action: str, code: str, text: str = "so it is", *, times: int = 1, status: int = 400) -> None:
        """Answer the next requests with an error."""
        body = json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": text})
        for _ in range(times):
            answer = web.Response(status=status, text=body, content_type="application/x-amz-json-1.0")
            self._planned.setdefault(action, []).append(answer)

    def refuse_role(self) -> None:
        """Answer every request of the token service, which has no action that we can see, with an error."""
        body = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>not you</Message></Error></ErrorResponse>"
        self._planned[""] = [web.Response(status=403, text=body, content_type="text/xml") for _ in range(9)]

    def edit(self, action: str, edit: Edit, *, times: int = 1) -> None:
        """Pass the next requests on, and change the answers."""
        self._edits.setdefault(action, []).extend([edit] * times)

    def asked(self, action: str) -> list[dict[str, Any]]:
        """The requests of one action so far."""
        return [request for name, request in self.requests if name == action]

    async def wait_for(self, action: str, count: int) -> list[dict[str, Any]]:
        """Return when so many requests of an action were answered."""
        with anyio.fail_after(PATIENCE):
            async with self._changed:
                await self._changed.wait_for(lambda: len(self.asked(action)) >= count)
        return self.asked(action)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        action = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        raw = await request.read()
        scope = request.headers.get("Authorization", "").partition("Credential=")[2].split("/")
        self.signers.append((scope[0], scope[2] if len(scope) > 2 else ""))
        polls = action == "ReceiveMessage"
        self._polls += polls
        self.most_polls = max(self.most_polls, self._polls)
        try:
            response = await self._answer(action, request.headers, raw)
        finally:
            self._polls -= polls
        async with self._changed:
            self.requests.append((action, json.loads(raw) if action else {}))
            self._changed.notify_all()
        return response

    async def _answer(self, action: str, headers: Mapping[str, str], raw: bytes) -> web.Response:
        if self._planned.get(action):
            return self._planned[action].pop(0)
        kept = {name: value for name, value in headers.items() if name.lower() not in ("host", "content-length")}
        async with self._session.post(self._target, data=raw, headers=kept) as answer:
            body = await answer.read()
            status, kind = answer.status, answer.content_type
        if status == 200 and self._edits.get(action):
            body = json.dumps(self._edits[action].pop(0)(json.loads(body))).encode()
        return web.Response(status=status, body=body, content_type=kind)

    @classmethod
    @contextlib.asynccontextmanager
    async def before(cls, server: SqsServer) -> AsyncIterator[Gate]:
        async with aiohttp.ClientSession() as session:
            gate = cls(server.endpoint_url, session)
            application = web.Application(client_max_size=10_000_000)
            application.router.add_route("*", "/{anything:.*}", gate._handle)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                address: Sequence[Any] = runner.addresses[0]
                gate.endpoint = f"http://127.0.0.1:{address[1]}"
                yield gate
            finally:
                await runner.cleanup()
