"""Seconds from ``rarefy run`` to the first image on disk, and of ``rarefy --help``.

The command runs as a process of its own on the embedded model, in a new folder, and is watched from outside; Ctrl-C
ends it once the first shard is committed. A shard is committed whole, so its size says what "the first image" means:
with ``--batch 1``, the default, a shard is one image and the first commit is the first finished image; with ``--batch
50`` it is the demo's first batch, whose sampling takes most of the time. The wall time is split at

    import   launch to the start of Ray's first server: interpreter, imports, reading the manifest
    ray      to the actor's first call: Ray's servers, a worker process, imports in it up to the call
    load     to state/run.json, which the driver writes when the first actor has loaded its models
    image    to the commit marker: all steps of the chain, scoring, PNG, tar, Parquet, hashes

``cold`` is ``exact`` with the user's cache empty, so that the kernels are built first; ``exact`` and ``fast`` find them
there. The machine is warm in every case: ``--warm-up`` runs that are not reported come first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.manifests import MANIFEST
from rarefy.bench.measure import Spread, machine, spread
from rarefy.bench.processes import Process, family

REPO = Path(__file__).parents[1]
POLL_S = 0.03
STDERR = "stderr.txt"
PATIENCE_S = 600.0
CASES = ("cold", "exact", "fast")
STAGES = ("import", "ray", "load", "image")
SHARDS = 4  # the first is measured; the others keep the command busy until it is told to stop


@dataclass(frozen=True)
class Launch:
    """Where a run happens: an empty folder, the user's cache, and the command's own options."""

    folder: Path
    cache: Path
    arguments: Sequence[str]


def first_image(manifest: str, launch: Launch) -> dict[str, float]:
    """Seconds a stage, and their ``total``, of one run."""
    path, out = launch.folder / "manifest.toml", launch.folder / "out"
    path.write_text(manifest)
    launched = time.time()
    with _command(["run", str(path), "--out", str(out), *launch.arguments], launch) as process:
        seen = _watch(process, launch.folder)
    times = [launched, seen["server"], seen["actor"], seen["loaded"], seen["committed"]]
    stages = {stage: end - start for stage, start, end in zip(STAGES, times[:-1], times[1:], strict=True)}
    return {**stages, "total": times[-1] - launched}


@contextmanager
def _command(arguments: Sequence[str], launch: Launch) -> Iterator[subprocess.Popen[str]]:
    """The command in a process group of its own, ended as by Ctrl-C in a terminal."""
    command = [sys.executable, "-m", "rarefy.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPO), "XDG_CACHE_HOME": str(launch.cache)}
    with (launch.folder / STDERR).open("w") as stderr:
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, text=True, stdout=subprocess.DEVNULL, stderr=stderr
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            process.wait(PATIENCE_S)
    if process.returncode not in (0, 130):
        raise RuntimeError(f"rarefy exited with {process.returncode}: {_last_words(launch.folder)}")


def _watch(process: subprocess.Popen[str], folder: Path) -> dict[str, float]:
    """When each thing was there, as time.time(): files and processes carry their own times, the actor's is polled."""
    seen: dict[str, float] = {}
    state = folder / "out" / "state"
    end = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < end:
        markers = sorted(state.glob("rare-*.json"), key=lambda path: path.stat().st_mtime_ns)
        if markers:
            seen["loaded"] = (state / "run.json").stat().st_mtime_ns / 1e9
            return {**seen, "committed": markers[0].stat().st_mtime_ns / 1e9}
        if "actor" not in seen:
            seen |= _progress(family(process.pid))
        time.sleep(POLL_S)
    raise RuntimeError(f"no shard was committed, exit code {process.poll()}: {_last_words(folder)}")


def _last_words(folder: Path) -> str:
    return (folder / STDERR).read_text()[-2000:]


def _progress(processes: Sequence[Process]) -> dict[str, float]:
    servers = [process.started for process in processes if "gcs_server" in process.title]
    called = any(process.title.startswith("ray::ShardGenerator") for process in processes)
    return ({"server": servers[0]} if servers else {}) | ({"actor": time.time()} if called else {})


def help_seconds(repeats: int) -> dict[str, Spread]:
    """Wall seconds of ``rarefy --help`` and, beside it, of a Python that does nothing. One run each first."""
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    commands = {"help": ["-m", "rarefy.cli", "--help"], "python": ["-c", "pass"]}
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats + 1):
        for name, arguments in commands.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
            found[name].append(time.perf_counter() - start)
    return {name: spread(seconds[1:]) for name, seconds in found.items()}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every case ``--repeats`` times in turn: seconds a stage by case, and what rarefy kept in the user's cache."""
    seconds: dict[str, list[dict[str, float]]] = {case: [] for case in options.cases}
    held: list[tuple[int, int]] = []
    for turn in range(-options.warm_up, options.repeats):
        with tempfile.TemporaryDirectory(prefix="rarefy-startup-") as folder:
            cache = Path(folder) / "cache"
            for case in options.cases if turn >= 0 else options.cases[:1]:
                place = Path(folder) / case
                place.mkdir()
                if case == "cold":
                    shutil.rmtree(cache, ignore_errors=True)
                found = first_image(_manifest(options, case), Launch(place, cache, options.arguments))
                print(f"{case}: {found['total']:.1f} s{'' if turn >= 0 else ' (warm-up)'}", file=sys.stderr, flush=True)
                if turn >= 0:
                    seconds[case].append(found)
            files = [path for path in (cache / "rarefy").rglob("*") if path.is_file()]
            held.append((len(files), sum(path.stat().st_size for path in files)))
    spreads = {
        case: {stage: asdict(spread([run[stage] for run in runs])) for stage in (*STAGES, "total")}
        for case, runs in seconds.items()
    }
    return {"first_image_s": spreads, "cache_files": held[-1][0], "cache_bytes": held[-1][1]}


def _manifest(options: argparse.Namespace, case: str) -> str:
    size = {"batch": options.batch, "shard_size": options.batch, "images": options.batch * SHARDS}
    return MANIFEST.format(precision="fast" if case == "fast" else "exact", steps=options.steps, **size)


def table(found: dict[str, Any]) -> str:
    """Medians as lines."""
    head = f"{'seconds':12}" + "".join(f"{name:>9}" for name in (*STAGES, "total"))
    rows = [
        f"{case:12}" + "".join(f"{stages[name]['median']:>9.2f}" for name in (*STAGES, "total"))
        for case, stages in found["first_image_s"].items()
    ]
    cache = f"user's cache after the last run: {found['cache_files']} files, {found['cache_bytes'] / 1e6:.1f} MB"
    texts = (f"{name}: {found[name + '_s']['median']:.3f} s" for name in ("help", "python"))
    return "\n".join([head, *rows, cache, *texts])


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--steps", type=int, default=50, help="steps of the chain (ancestral, the demo's guidance)")
    parser.add_argument("--batch", type=int, default=1, help="images a batch and a shard")
    parser.add_argument("--threads", type=int, help="batches at once in the actor (default: as rarefy chooses)")
    parser.add_argument("--compile", choices=("auto", "off", "full"), default="auto", help="as rarefy run takes it")
    parser.add_argument("--repeats", type=int, default=3, help="measured runs a case")
    parser.add_argument("--warm-up", type=int, default=1, help="runs of the first case before them")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(argv)
    options.arguments = ["--compile", options.compile]
    if options.threads is not None:
        options.arguments += ["--cpus-per-actor", str(options.threads)]
    found = measure(options)
    found |= {f"{name}_s": asdict(seconds) for name, seconds in help_seconds(max(3, options.repeats)).items()}
    print(table(found))
    if options.json:
        about = {name: getattr(options, name) for name in ("steps", "batch", "compile")}
        print(json.dumps({**about, **found, "machine": machine(torch.device("cpu"))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
