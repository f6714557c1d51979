"""What can be done to the world. Each fault says whom it hit, and when; how long it hurt is found afterwards.

A fault mends what it broke, as whoever runs the servers would, and returns when everything runs again; messages flow
meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from servers.airflow import API_SERVER
from servers.airflow_watch import TriggererWatch
from tests.chaos.traffic import Traffic
from tests.chaos.world import THRESHOLD, World

__all__ = [
    "Fault",
    "Strike",
    "black_hole",
    "end",
    "kill",
    "kill_both",
    "kill_runner",
    "roll",
    "stop_api_server",
    "stop_everything",
    "stop_kafka",
    "stop_mosquitto",
    "stop_postgres",
    "stop_supervisor",
]


@dataclass(frozen=True)
class Strike:
    """One fault that was done.

    :param what: for the log of the scenario.
    :param at: seconds since the epoch: when it began; for a server that was away: when it was back.
    :param jobs: the triggerers that were hit, by their ids in Airflow's table of jobs; none when it was a server.
    :param runs: the runs whose waits these triggerers had.
    :param complaints: what should not have been meanwhile, beside what the witness finds.
    """

    what: str
    at: float
    jobs: frozenset[int] = frozenset()
    runs: frozenset[str] = frozenset()
    complaints: tuple[str, ...] = ()


Fault = Callable[[World, Traffic, random.Random], list[Strike]]
"""Breaks something, lets the traffic go on, and mends it."""


def kill(world: World, traffic: Traffic, rng: random.Random) -> list[Strike]:
    """SIGKILL to a triggerer, supervisor and subprocess."""
    name = _victim(world, rng)
    strike = _hit(world, f"kill -9 of {name}", name)
    world.airflow.kill_component(name)
    traffic.go_on()
    world.airflow.start_component(name)
    return [strike]


def kill_runner(world: World, traffic: Traffic, rng: random.Random) -> list[Strike]:
    """SIGKILL to a triggerer's subprocess alone."""
    name = _victim(world, rng)
    strike = _hit(world, f"kill -9 of the subprocess of {name}", name)
    world.kill_runner(name)
    traffic.go_on()
    world.airflow.start_component(name)
    return [strike]


def kill_both(world: World, traffic: Traffic, rng: random.Random) -> list[Strike]:
    """SIGKILL to both triggerers: nobody is left to take over."""
    strike = _hit(world, "kill -9 of both triggerers", *world.triggerers)
    for name in world.triggerers:
        world.airflow.kill_component(name)
    traffic.go_on()
    for name in world.triggerers:
        world.airflow.start_component(name)
    return [strike]


def end(world: World, traffic: Traffic, rng: random.Random) -> list[Strike]:
    """SIGTERM to a triggerer."""
    return [_end(world, traffic, _victim(world, rng))]


def roll(world: World, traffic: Traffic, rng: random.Random) -> list[Strike]:
    """SIGTERM to one triggerer after the other, each started again before the next is ended.

    The busiest is the first, so that its waits go to the next one, which ends in the middle of them.
    """
    _until_busy(world, world.triggerers)
    names = sorted(world.triggerers, key=lambda name: len(world.waits_of(name)), reverse=True)
    return [_end(world, traffic, name) for name in names]


def _end(world: World, traffic: Traffic, name: str) -> Strike:
    _until_busy(world, [name])
    strike = _hit(world, f"SIGTERM to {name}", name)
    traffic.go_on()
    world.airflow.stop_component(name)
    world.airflow.start_component(name)
    return strike


def stop_supervisor(world: World, traffic: Traffic, rng: random.Random) -> list[Strike]:
    """SIGSTOP to a triggerer's supervisor: its waits go to the other one, while its subprocess still runs them too."""
    name = _victim(world, rng)
    return _stop_and_continue(
        world, traffic, name, "the supervisor of ", lambda number: os.kill(world.pid(name), number)
    )


def stop_everything(world: World, traffic: Traffic, rng: random.Random) -> list[Strike]:
    """SIGSTOP to a whole triggerer: when it goes on, it is in the middle of waits that the other one has."""
    name = _victim(world, rng)
    return _stop_and_continue(world, traffic, name, "", world.airflow.components[name].signal)


def _stop_and_continue(
    world: World, traffic: Traffic, name: str, which: str, send: Callable[[int], None]
) -> list[Strike]:
    strike = _hit(world, f"SIGSTOP to {which}{name}", name)
    send(signal.SIGSTOP)
    traffic.go_on()
    try:
        # The other one asks for waits without an owner every second or two.
        world.until(lambda: not world.waits_of(name), THRESHOLD + 300, f"the waits of {name} are taken over")
        # Both run now, or at least the other one is in the middle of it.
        traffic.flow(80)
    finally:
        send(signal.SIGCONT)
    return [strike]


# ------------------------------------------------------------------------------------------------------------ servers


def stop_api_server(world: World, traffic: Traffic, rng: random.Random, seconds: float = 60) -> list[Strike]:
    """Airflow's API server is killed, and started again after this long. The triggerers are heard of all the time."""
    watches = [TriggererWatch(world.airflow, name) for name in world.triggerers]
    world.airflow.kill_component(API_SERVER)
    traffic.go_on()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for watch in watches:
            watch.sample()
        time.sleep(0.2)
    world.airflow.start_component(API_SERVER)
    oldest, growth = max(watch.oldest for watch in watches), max(watch.growth for watch in watches) / 2**20
    seen = f"oldest heartbeat {oldest:.1f} s, {growth:.0f} MiB more"
    complaints = tuple(complaint for watch in watches for complaint in watch.complaints())
    return [Strike(f"API server away for {seconds:.0f} s ({seen})", time.time(), complaints=complaints)]


def stop_postgres(world: World, traffic: Traffic, rng: random.Random, seconds: float = 5) -> list[Strike]:
    """PostgreSQL is killed, and started again after this long; so are the parts of Airflow that end over it."""
    world.postgres.kill()
    traffic.go_on()
    time.sleep(seconds)
    world.postgres.start()
    ended = world.revive()
    return [Strike(f"PostgreSQL away for {seconds:.0f} s; ended: {', '.join(ended) or 'nobody'}", time.time())]


def stop_kafka(world: World, traffic: Traffic, rng: random.Random) -> list[Strike]:
    """The Kafka broker is killed and started again."""
    world.kafka.nodes[0].kill()
    traffic.go_on()
    world.kafka.nodes[0].start()
    return [Strike("kill -9 of Kafka", time.time())]


def stop_mosquitto(world: World, traffic: Traffic, rng: random.Random) -> list[Strike]:
    """Mosquitto is stopped and started again, with the sessions that it kept."""
    with traffic.without_mosquitto():
        world.mosquitto.restart()
    traffic.go_on()
    return [Strike("restart of Mosquitto", time.time())]


def black_hole(world: World, traffic: Traffic, rng: random.Random, seconds: float = 30) -> list[Strike]:
    """Nothing passes between the triggerers and the brokers for this long, and nobody is told."""
    proxies = (world.kafka_proxy, world.sqs_proxy, world.mqtt_proxy)
    for proxy in proxies:
        proxy.black_hole()
    traffic.go_on()
    time.sleep(seconds)
    for proxy in proxies:
        proxy.restore()
    return [Strike(f"no packet to or from a broker for {seconds:.0f} s", time.time())]


def _victim(world: World, rng: random.Random) -> str:
    """Mostly the one that has more to lose."""
    _until_busy(world, world.triggerers)
    busiest = max(world.triggerers, key=lambda name: len(world.waits_of(name)))
    return busiest if rng.random() < 0.8 else rng.choice(world.triggerers)


def _until_busy(world: World, names: Sequence[str]) -> None:
    """Return when one of these has waits, or none has for so long that it will not get any."""
    with contextlib.suppress(TimeoutError):
        world.until(lambda: any(world.waits_of(name) for name in names), 60, "somebody has waits")


def _hit(world: World, what: str, *names: str) -> Strike:
    jobs = frozenset(world.airflow.jobs[name] for name in names)
    runs = frozenset(run for name in names for run in world.waits_of(name))
    return Strike(what, time.time(), jobs, runs)
