"""Peak memory of one actor's work: load two networks from files, then guided steps; random weights of a preset's shape.

Each mode runs in a fresh process. Its peak is the kernel's high-water mark of resident memory (VmHWM: what getrusage's
ru_maxrss reports, without what that one inherits from the process before exec), once over loading and once over the
steps, less what is resident after ``import torch``. Resident memory counts mapped pages of the weights files as long as
a mapping stands; ``file`` is their share, which the kernel can take back, ``anonymous`` the share that it cannot.

The target: ``ratio`` = peak / (1.2 x weights + row) of at most 1. weights: bytes of all parameters and buffers as
loaded, in the mode's own types. row: activations of one block row, found on tensors without content (the same code at
the same batch, eager, every storage counted from its making to its end):

    U-Net        outputs of all encoder blocks, which wait for the decoder, + the largest block's working set
    classifier   what autograd saves for the gradient with respect to x_t, + the largest block's working set
    row          the larger of the two, since the U-Net's are gone when the classifier starts

A block's working set is its input and the most that is alive at once of what it makes itself, without a gradient.
``ratio_unet_row`` allows the U-Net's row alone, as if the classifier had to save nothing. ``live`` is the most that is
alive at once over both networks, gradient included, by the same count: what is between it and the measured peak of the
steps is the allocator's, the kernels' scratch and, in ``fast``, the compiler's modules.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rarefy.bench.memory import reset_peak

WEIGHTS_SLACK = 1.2
CPU = torch.device("cpu")
MODES = ("exact", "fast")


@dataclass(frozen=True)
class Case:
    preset: str
    batch: int
    steps: int
    precision: str
    compile: str = "auto"


@dataclass(frozen=True)
class Resident:
    """Bytes: resident now, its two kinds, and the peak since the last reset."""

    now: int
    anonymous: int
    file: int
    peak: int


def resident() -> Resident:
    """This process's resident memory, from /proc."""
    text = Path("/proc/self/status").read_text()
    values = {name: int(value) * 1024 for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return Resident(values["VmRSS"], values["RssAnon"], values["RssFile"], values["VmHWM"])


def measure(case: Case, folder: str) -> dict[str, int]:
    """Bytes of one mode; meant for a process of its own."""
    before = resident()
    from rarefy.diffusion.sampler import SamplerSettings, sample
    from rarefy.fast.cpu.allocator import keep_freed_memory
    from rarefy.fast.precision import execution_on, set_up
    from rarefy.guidance.terms import ClassifierGuidance
    from rarefy.models.folder import find_model
    from rarefy.models.load import load_models

    torch.set_num_threads(1)
    keep_freed_memory()
    preset = find_model(case.preset)
    paths = [str(path) for path in _files(folder)]
    reset_peak(CPU)
    models = load_models(preset, paths[0], paths[1], (None, None), CPU, case.precision)
    loaded = resident()
    execution = execution_on(models.device, case.precision, case.compile)
    set_up((models.unet, models.classifier), execution, case.batch)
    gc.collect()
    reset_peak(CPU)
    chain = SamplerSettings(steps=str(max(2, case.steps))).chain(preset, [ClassifierGuidance()])
    y = torch.zeros(case.batch, dtype=torch.int64)
    for _ in islice(sample(models, y, list(range(case.batch)), chain), case.steps):
        pass
    stepped = resident()
    return {
        "weights": weight_bytes([models.unet, models.classifier]),
        "peak_loading": loaded.peak - before.now,
        "loaded": loaded.now - before.now,
        "loaded_anonymous": loaded.anonymous - before.anonymous,
        "loaded_file": loaded.file - before.file,
        "peak_steps": stepped.peak - before.now,
        "peak_steps_anonymous": stepped.peak - stepped.file - before.anonymous,
        "after_import_torch": before.now,
    }


def weight_bytes(networks: Sequence[nn.Module]) -> int:
    return sum(
        tensor.numel() * tensor.element_size()
        for network in networks
        for tensor in [*network.parameters(), *network.buffers()]
    )


def write_weights(preset_name: str, folder: str) -> None:
    """Random weights of both networks as safetensors, float32 as OpenAI's files are."""
    import safetensors.torch

    from rarefy.models.adm import Classifier, UNet
    from rarefy.models.folder import find_model

    preset = find_model(preset_name)
    with torch.device("meta"):
        networks = [UNet(preset.unet), Classifier(preset.classifier)]
    torch.manual_seed(0)
    for network, path in zip(networks, _files(folder), strict=True):
        state = {name: torch.empty(value.shape).normal_(std=0.02) for name, value in network.state_dict().items()}
        safetensors.torch.save_file(state, path)


def _files(folder: str) -> list[Path]:
    return [Path(folder) / f"{name}.safetensors" for name in ("unet", "classifier")]


@contextmanager
def _child() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def run(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every mode's bytes, with ratio = peak / limit, each found in a process of its own."""
    from benchmarks.memory_row import activations

    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="rarefy-memory-", dir=options.folder) as folder:
        with _child() as pool:
            pool.submit(write_weights, options.preset, folder).result()
        for precision in options.modes:
            case = Case(options.preset, options.batch, options.steps, precision, options.compile)
            with _child() as pool:
                row = pool.submit(activations, case.preset, case.batch, case.precision).result()
            with _child() as pool:
                bytes_of = pool.submit(measure, case, folder).result()
            found[precision] = {**bytes_of, **row, **_against(bytes_of, row)}
    return found


def _against(bytes_of: dict[str, int], row: dict[str, int]) -> dict[str, float]:
    peak, allowed = max(bytes_of["peak_loading"], bytes_of["peak_steps"]), WEIGHTS_SLACK * bytes_of["weights"]
    return {
        "peak": peak,
        "ratio": peak / (allowed + row["row"]),
        "ratio_unet_row": peak / (allowed + row["unet_row"]),
        "ratio_loading": bytes_of["peak_loading"] / (allowed + row["row"]),
        "ratio_steps": bytes_of["peak_steps"] / (allowed + row["row"]),
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Megabytes (10^6) by mode."""
    names = list(next(iter(found.values())))
    rows = [f"{'MB':22}" + "".join(f"{mode:>10}" for mode in found)]
    for name in names:
        cells = [figures[name] for figures in found.values()]
        rows.append(
            f"{name:22}" + "".join(f"{c:>10.3f}" if isinstance(c, float) else f"{c / 1e6:>10.1f}" for c in cells)
        )
    return "\n".join(rows)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="adm-imagenet-64", help="whose shape: see rarefy models")
    parser.add_argument("--batch", type=int, default=4, help="images a batch")
    parser.add_argument("--steps", type=int, default=2, help="guided steps that are run")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="precisions")
    parser.add_argument("--compile", choices=("auto", "off", "full"), default="auto", help="as rarefy run takes it")
    parser.add_argument("--folder", help="where the random weights are written for a while (default: temporary)")
    parser.add_argument("--threads", type=int, choices=(1,), default=1, help="an actor's batch always has one thread")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(argv)
    found = run(options)
    print(table(found))
    if options.json:
        from rarefy.bench.measure import machine

        settings = {name: getattr(options, name) for name in ("preset", "batch", "steps", "compile")}
        print(json.dumps({**settings, "bytes": found, "machine": machine(CPU)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
