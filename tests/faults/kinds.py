"""The kinds of faults: to processes, machines, files, storage calls and devices, and to finished data sets."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from benchmarks.s3 import SPOILS
from faults.world import Output, Session, World
from rarefy.shards.marker import parse_marker

PAUSE_S = 2.0
SPOIL_RATE = 0.2  # of the requests while a storage fault is due
FULL_DISK = 2  # exit code: the user has to make room
DAY_S = 86_400


@dataclass
class Scene:
    """One output while it is made.

    extra: nodes to remove at the end; due: storage faults that wait for a request; codes: exit codes that faults which
    have not happened yet may cause, in whatever session meets them;
    bad: whether it has had a bad node.
    """

    world: World
    output: Output
    rng: random.Random
    sessions: list[Session] = field(default_factory=list)
    extra: list[Any] = field(default_factory=list)
    due: list[str] = field(default_factory=list)
    codes: set[int] = field(default_factory=set)
    bad: bool = False

    def start(self) -> Session:
        """Start a driver."""
        session = self.world.start(self.output)
        session.struck |= self.codes
        return session

    @property
    def running(self) -> list[Session]:
        return [session for session in self.sessions if session.running]

    def spoil(self, operation: str) -> str | None:
        """For the proxy: the next fault that is due, if it can happen to this operation and chance wills it."""
        for kind in self.due:
            fits = operation in {"truncated read": {"GET"}, "answer lost": {"PUT", "DELETE"}}.get(kind, {operation})
            if fits and self.rng.random() < SPOIL_RATE:
                self.due.remove(kind)
                return kind
        return None


@dataclass(frozen=True)
class Kind:
    """A fault to a running session. inject returns whether it could; places: where outputs may be.

    late: whether the fault happens after ``inject`` returns, so that it may turn out not to happen.
    """

    name: str
    inject: Callable[[Scene, str], bool]
    places: tuple[str, ...] = ("local", "s3")
    late: bool = False


def strike_actor(scene: Scene, name: str) -> bool:
    """A signal to an actor that has loaded its models."""
    pids = scene.world.loaded_actors()
    if pids:
        os.kill(scene.rng.choice(pids), signal.Signals[name.split()[1]])
    return bool(pids)


def strike_driver(scene: Scene, name: str) -> bool:
    """A signal to a driver. Exit codes are those of a shell: 130 after SIGINT, 143 after SIGTERM."""
    number = signal.Signals[name.split()[1]]
    for session in scene.rng.sample(scene.running, min(1, len(scene.running))):
        session.struck.add(-number if number == signal.SIGKILL else 128 + number)
        session.process.send_signal(number)
        return True
    return False


def pause_driver(scene: Scene, name: str) -> bool:
    for session in scene.running[:1]:
        session.process.send_signal(signal.SIGSTOP)
        time.sleep(PAUSE_S)
        session.process.send_signal(signal.SIGCONT)
        return True
    return False


def kill_node(scene: Scene, name: str) -> bool:
    """A machine is lost, and another one comes."""
    scene.world.remove_node(scene.rng.choice(scene.world.nodes))
    scene.world.add_node()
    return True


def add_node(scene: Scene, name: str) -> bool:
    scene.extra.append(scene.world.add_node())
    return True


def add_bad_node(scene: Scene, name: str) -> bool:
    """At most one to an output."""
    if scene.bad:
        return False
    scene.bad = True
    scene.extra.append(scene.world.add_node(bad=True))
    return True


def second_driver(scene: Scene, name: str) -> bool:
    scene.sessions.append(scene.start())
    return True


def drop_token(scene: Scene, name: str) -> bool:
    """A fault in the first process of the run that gets to the right place."""
    world = scene.world
    world.count += 1
    if name == "fsync ENOSPC":
        scene.codes.add(FULL_DISK)
        for session in scene.running:
            session.struck |= scene.codes
    world.drop_token(name, world.count, str(scene.rng.choice((-400, -1, 1, 400)) * DAY_S))
    return True


def spoil_request(scene: Scene, name: str) -> bool:
    scene.due.append(name)
    return True


RUNNING = {
    kind.name: kind
    for kind in (
        Kind("actor SIGKILL", strike_actor),
        Kind("actor SIGSTOP", strike_actor),
        Kind("actor SIGTERM", strike_actor),
        Kind("driver SIGKILL", strike_driver),
        Kind("driver SIGINT", strike_driver),
        Kind("driver SIGTERM", strike_driver),
        Kind("driver SIGSTOP", pause_driver),
        Kind("raylet SIGKILL", kill_node),
        Kind("raylet added", add_node),
        Kind("bad node", add_bad_node),
        Kind("two drivers", second_driver),
        *(
            Kind(name, drop_token, ("local",), late=True)
            for name in ("fsync EIO", "fsync ENOSPC", "rename ESTALE", "read EIO", "slow fsync", "clock jump")
        ),
        Kind("NaN", drop_token, late=True),
        Kind("lost GPU", drop_token, late=True),
        *(Kind(name, spoil_request, ("s3",), late=True) for name in SPOILS),
    )
}

Damage = Callable[[Output, list[str], random.Random], list[str]]
"""Damages a sealed output at up to two shards, and returns what verify has to name."""

FILES = {"tar": "shards/{}.tar", "Parquet": "metadata/{}.parquet", "marker": "state/{}.json"}


def flip(output: Output, names: list[str], rng: random.Random, what: str) -> list[str]:
    rel = FILES[what].format(names[0])
    data = bytearray(output.read(rel))
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    output.write(rel, bytes(data))
    return names[:1]


def flip_listing(output: Output, names: list[str], rng: random.Random, rel: str) -> list[str]:
    data = bytearray(output.read(rel))
    places = [place for place, byte in enumerate(data) if chr(byte).isalnum()]
    data[rng.choice(places)] ^= 1
    output.write(rel, bytes(data))
    return [rel]


def truncate(output: Output, names: list[str], rng: random.Random, what: str) -> list[str]:
    rel = FILES[what].format(names[0])
    data = output.read(rel)
    output.write(rel, data[: rng.randrange(len(data))])
    return names[:1]


def delete(output: Output, names: list[str], rng: random.Random, what: str) -> list[str]:
    output.delete(FILES[what].format(names[0]))
    return names[:1]


def copy(output: Output, names: list[str], rng: random.Random) -> list[str]:
    """One shard's three files over another's."""
    for rel in FILES.values():
        output.write(rel.format(names[1]), output.read(rel.format(names[0])))
    return names[1:]


def swap(output: Output, names: list[str], rng: random.Random) -> list[str]:
    """Two shards change places, and their markers name the new ones: only the plan knows better."""
    for rel in FILES.values():
        first, second = (output.read(rel.format(name)) for name in names)
        if rel == FILES["marker"]:
            first, second = _renamed(first, names[1]), _renamed(second, names[0])
        output.write(rel.format(names[0]), second)
        output.write(rel.format(names[1]), first)
    return names


def _renamed(marker: bytes, name: str) -> bytes:
    """The marker of another shard that says the same about its files, with the right checksum of itself."""
    shard = int(name.rpartition("-")[2])
    return replace(parse_marker(marker, name), name=name, shard=shard).to_json()


LISTINGS: dict[str, Damage] = {f"flipped {rel}": partial(flip_listing, rel=rel) for rel in ("index.json", "_SUCCESS")}
RESTING: dict[str, Damage] = {
    **LISTINGS,
    **{f"flipped {what}": partial(flip, what=what) for what in FILES},
    **{f"truncated {what}": partial(truncate, what=what) for what in FILES},
    **{f"deleted {what}": partial(delete, what=what) for what in FILES},
    "copied shard": copy,
    "swapped shards": swap,
}
