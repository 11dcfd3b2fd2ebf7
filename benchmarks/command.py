"""What the benchmarks share: the command line, and forms of the same work that are timed in turn."""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch

from rarefy.bench.measure import clock, machine, ratios, spread
from rarefy.device import peak_bytes, reset_peak

Start = Callable[[str, argparse.Namespace], Callable[[], object]]
"""A module-level function: form and options -> a function that does the form's work once."""

_here: dict[str, Any] = {}  # this process's form


def make_parser(doc: str | None, repeats: int) -> argparse.ArgumentParser:
    """A parser with the common options; doc: the module's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"measured repeats (default {repeats})")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser


def compare(
    start: Start, ours: Sequence[str], peers: Sequence[str], options: argparse.Namespace, warm_up: int = 2
) -> None:
    """Time all forms in turn; print how many times as fast as each peer ours are, and their share of its peak memory.

    Each form has its own process, so that process-wide settings of one do not reach the others. Memory is counted from
    what the process holds before ``start``, and is that of the repeated work only.
    """
    runs: dict[str, list[tuple[float, int]]] = {form: [] for form in (*peers, *ours)}
    with ExitStack() as stack:
        pools = {form: stack.enter_context(fresh_process(_begin, start, form, options)) for form in runs}
        for _ in range(warm_up + options.repeats):
            for form, pool in pools.items():
                runs[form].append(pool.submit(_timed).result())
    seconds = {form: [second for second, _ in results[warm_up:]] for form, results in runs.items()}
    result: dict[str, Any] = {"seconds": {}, "peak_bytes": {}}
    for form, values in seconds.items():
        result["seconds"][form], result["peak_bytes"][form] = spread(values).median, runs[form][-1][1]
        print(f"{form:16}{spread(values)} s, {runs[form][-1][1] / 1e6:,.0f} MB")
    for form, peer in itertools.product(ours, peers):
        ratio, memory = ratios(seconds[peer], seconds[form]), runs[form][-1][1] / max(runs[peer][-1][1], 1)
        print(f"{form} is {ratio} times as fast as {peer} and takes {memory:.2f} of its memory")
        result[f"{form}/{peer}"] = {"speed": asdict(ratio), "memory": memory}
    finish(options, result)


def fresh_process(initializer: Callable[..., object] = int, *arguments: Any) -> ProcessPoolExecutor:
    """A pool of one new process."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer, arguments)


def finish(options: argparse.Namespace, result: Mapping[str, Any]) -> None:
    """Print options, result and machine as the last line, where ``--json`` asks for it."""
    if options.json:
        print(json.dumps({**vars(options), **result, "machine": machine(torch.device(options.device))}))


def _begin(start: Start, form: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    reset_peak(device)
    _here.update(device=device, resting=peak_bytes(device), work=start(form, options))
    reset_peak(device)


def _timed() -> tuple[float, int]:
    begin = clock(_here["device"])
    _here["work"]()
    return clock(_here["device"]) - begin, peak_bytes(_here["device"]) - _here["resting"]
