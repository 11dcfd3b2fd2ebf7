"""Forms of the same work that take turns, each in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

Case = TypeVar("Case")
Result = TypeVar("Result")


def take_turns(
    work: Callable[[Case], Result], cases: Mapping[str, Case], warm_up: int, repeats: int
) -> dict[str, list[Result]]:
    """Call ``work``, a module's function, with each case in turn. Returns its results behind ``warm_up`` turns."""
    results: dict[str, list[Result]] = {name: [] for name in cases}
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        processes = {name: stack.enter_context(ProcessPoolExecutor(1, context)) for name in cases}
        for turn in range(warm_up + repeats):
            for name, process in processes.items():
                result = process.submit(work, cases[name]).result()
                if turn >= warm_up:
                    results[name].append(result)
    return results
