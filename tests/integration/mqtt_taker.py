"""A process that takes messages, acknowledges the first, and waits to be killed: for the tests of sessions."""

from __future__ import annotations

import asyncio
import sys

from event_triggers.sources.mqtt import MqttTopic
from tests.integration.mqtt_support import mqtt_connection, new_opening, taking


async def main(port: str, protocol: str, topic: str, qos: str, group: str, count: str) -> None:
    opening = new_opening(mqtt_connection(int(port), protocol=protocol), group)
    async with taking(opening, MqttTopic(topic, int(qos))) as taker:
        print("subscribed", flush=True)
        for number in range(int(count)):
            (message,) = await taker.take()
            if not number:
                await taker.settle(message)
                await asyncio.sleep(0.05)  # the acknowledgement is written in the next turn of the loop
            print((message.body or b"").decode(), message.id, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
