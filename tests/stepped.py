"""Runs two users of one store in threads, one storage call at a time, in every order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from rarefy.shards.store import Store

Attempt = Callable[[Store], Any]


class Turns:
    """Lets one thread at a time make its next storage call."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.granted: dict[int, threading.Semaphore] = {}
        self.ended: set[int] = set()

    def wait(self, me: int) -> None:
        self.arrived.release()
        self.granted[me].acquire()

    def grant(self, me: int) -> None:
        self.granted[me].release()
        self.arrived.acquire()


class Stepped:
    """Asks for a turn before each call of the files below."""

    def __init__(self, files: Any, turns: Turns, me: int) -> None:
        self._inner, self._turns, self._me = files, turns, me

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value):
            return value

        def stepped(*arguments: Any) -> Any:
            self._turns.wait(self._me)
            return value(*arguments)

        return stepped


class Race:
    """Two attempts in threads, each with its own store.

    results: what each attempt returned or raised; seen: what ``look`` returned when the first of them had ended.
    """

    def __init__(self, root: str, attempts: Sequence[Attempt], look: Callable[[Store], Any]) -> None:
        self.store, self.look = Store(root, patience_s=0.0), look
        self.turns, self.results = Turns(), dict[int, Any]()
        self.threads = [threading.Thread(target=self._attempt, args=(me, root, attempts[me])) for me in (0, 1)]
        self.seen: Any = None
        for me, thread in enumerate(self.threads):
            self.turns.granted[me] = threading.Semaphore(0)
            thread.start()
            self.turns.arrived.acquire()

    def _attempt(self, me: int, root: str, attempt: Attempt) -> None:
        store = Store(root, patience_s=0.0)
        store._files = Stepped(store._files, self.turns, me)  # type: ignore[assignment]  # the same methods
        self.turns.wait(me)
        try:
            self.results[me] = attempt(store)
        except Exception as error:  # the main thread reports it
            self.results[me] = error
        self.turns.ended.add(me)
        self.turns.arrived.release()

    def run(self, order: Sequence[int]) -> list[tuple[int, bool]]:
        """Follow ``order``, then finish attempt 0 before attempt 1.

        Returns whose turn each was, and whether the other attempt could have taken it.
        """
        turns: list[tuple[int, bool]] = []
        while able := [me for me in (0, 1) if me not in self.turns.ended]:
            me = order[len(turns)] if len(turns) < len(order) else able[0]
            turns.append((me, len(able) == 2))
            self.turns.grant(me)
            if self.turns.ended and self.seen is None:
                self.seen = self.look(self.store)
        for thread in self.threads:
            thread.join()
        return turns


def races(begin: Callable[[], Race], switches: int) -> Iterator[Race]:
    """All orders in which the turns change hands at most ``switches`` times before one attempt has ended."""
    todo: list[tuple[int, ...]] = [(), (1,)]
    while todo:
        order = todo.pop()
        race = begin()
        turns = race.run(order)
        yield race
        taken = tuple(me for me, _ in turns)
        for place in range(len(order), len(turns)):
            branch = (*taken[:place], 1 - taken[place])
            changes = sum(one != two for one, two in pairwise(branch))
            if place and turns[place][1] and changes <= switches:
                todo.append(branch)
