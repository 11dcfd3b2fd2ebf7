"""One guided sampling step beside the reference's: ``python benchmarks/step.py --model embedded --threads 1 --json``.

The baseline (benchmarks/baseline.py, a stand-in checked against the goldens), ``exact`` and ``fast`` take turns, each
in a process of its own that is set up as its users would have it. A step is timed in its parts while it is taken: in
CPU seconds of its process with one thread, else in wall seconds. Ratios are medians over steps taken one after another.
On a GPU the baseline's convolutions are float32 too, but with ``--tf32``, which rounds them as torch does unasked.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from benchmarks.baseline import BaselineStep
from benchmarks.turns import take_turns
from rarefy.bench.measure import machine, ratios
from rarefy.bench.step import Split, StepClock, endless_steps
from rarefy.bench.workload import bench_manifest, load_workload
from rarefy.fast.cpu.allocator import keep_freed_memory
from rarefy.fast.precision import COMPILES, execution_on, set_up

MODELS = {"embedded": "fashion-mnist-28", "adm-64": "adm-imagenet-64", "adm-256": "adm-imagenet-256"}
BATCHES = {"embedded": 64, "adm-64": 4, "adm-256": 1}
FORMS = ("baseline", "exact", "fast")
WARM_UP = 2  # steps: the first compiles


@dataclass(frozen=True)
class Case:
    """What is measured: a form (baseline, exact or fast) of a preset's step for ``batch`` images, on a device.

    keep_memory: whether the project's forms tell the C allocator to keep freed memory, as actors do; compile: theirs;
    tf32: whether a GPU may round the baseline's convolutions.
    """

    form: str
    preset: str
    batch: int
    device: str
    threads: int
    keep_memory: bool = True
    compile: str = "auto"
    tf32: bool = False


@dataclass(frozen=True)
class Form:
    """One way to take the step. step: takes one and marks its parts on ``clock``."""

    step: Callable[[], object]
    clock: StepClock

    def timed(self) -> Split:
        """Seconds of one step."""
        self.clock.mark("step")
        self.step()
        self.clock.mark("step end")
        return self.clock.split()


@dataclass(frozen=True, eq=False)
class TimedBaseline(BaselineStep):
    """The baseline's step with its parts marked on a clock."""

    clock: StepClock

    def eps_and_variance(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.clock.mark("unet")
        output = super().eps_and_variance(x, t, y)
        self.clock.mark("unet end")
        return output

    def log_prob(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        self.clock.mark("classifier")
        x_in, objective = super().log_prob(x, t, y)
        self.clock.mark("classifier end")
        x_in.register_hook(lambda _: self.clock.mark("backward end"))
        objective.register_hook(lambda _: self.clock.mark("backward"))
        return x_in, objective


@functools.cache
def form_of(case: Case) -> Form:
    """This process's form, made once."""
    torch.set_num_threads(case.threads)
    return baseline(case) if case.form == "baseline" else ours(case)


def timed(case: Case) -> Split:
    """Seconds of one step of the process's form."""
    return form_of(case).timed()


def ours(case: Case) -> Form:
    """The project's own step in ``exact`` or ``fast``, its process set up as an actor's."""
    device, manifest = torch.device(case.device), bench_manifest(None, case.preset, case.form)
    if device.type == "cpu" and case.keep_memory:
        keep_freed_memory()
    models, _ = load_workload(manifest, device)
    set_up((models.unet, models.classifier), execution_on(device, case.form, case.compile), case.batch)
    clock = StepClock(device)
    steps = endless_steps(models, manifest.settings.chain(models.preset, manifest.terms), case.batch, clock)
    return Form(lambda: next(steps), clock)


def baseline(case: Case) -> Form:
    """The reference's step: float32, weights in its layout that want gradients."""
    device, batch, manifest = torch.device(case.device), case.batch, bench_manifest(None, case.preset, "exact")
    torch.backends.cudnn.allow_tf32 = case.tf32
    models, _ = load_workload(manifest, device)
    for network in (models.unet, models.classifier):
        for parameter in network.requires_grad_().parameters():
            parameter.data = parameter.data.contiguous()
    schedule, clock = manifest.settings.chain(models.preset).schedule, StepClock(device)
    step = TimedBaseline(models.unet, models.classifier, schedule, models.preset.recommended_scale, clock)
    shape = (batch, models.preset.channels, models.preset.image_size, models.preset.image_size)
    x_t = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    y = torch.arange(batch, device=device) % models.preset.classifier_classes
    return Form(lambda: step(x_t, len(schedule) // 2, y, torch.randn_like(x_t)), clock)


def compare(base: Case, repeats: int) -> dict[str, object]:
    """Time the three forms in turn, each some steps unmeasured. Returns ratios, quartiles, and each form's split."""
    splits = take_turns(timed, {name: replace(base, form=name) for name in FORMS}, WARM_UP, repeats)
    seconds = {name: [split.step for split in found] for name, found in splits.items()}
    exact, fast = (ratios(seconds["baseline"], seconds[name]) for name in ("exact", "fast"))
    return {
        "exact_ratio": round(exact.median, 3),
        "fast_ratio": round(fast.median, 3),
        "exact_spread": [round(exact.low, 3), round(exact.high, 3)],
        "fast_spread": [round(fast.low, 3), round(fast.high, 3)],
        "seconds_a_step": {name: round(statistics.median(values), 5) for name, values in seconds.items()},
        "split": {name: _median(found) for name, found in splits.items()},
    }


def _median(splits: list[Split]) -> dict[str, float]:
    rows = [asdict(split) for split in splits]
    return {part: round(statistics.median(row[part] for row in rows), 5) for part in rows[0]}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="embedded")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, help="default: 64 embedded, 4 adm-64, 1 adm-256")
    parser.add_argument("--repeats", type=int, default=9, help="measured steps a form")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", choices=COMPILES, default="auto", help="of exact and fast, as rarefy run takes it")
    parser.add_argument("--tf32", action="store_true", help="let a GPU round the baseline's convolutions to 10 bits")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    batch, device = arguments.batch or BATCHES[arguments.model], torch.device(arguments.device)
    base = Case(
        "baseline",
        MODELS[arguments.model],
        batch,
        arguments.device,
        arguments.threads,
        compile=arguments.compile,
        tf32=arguments.tf32,
    )
    result = compare(base, arguments.repeats)
    _print_table(result)
    if arguments.json:
        about = {
            "model": arguments.model,
            "batch": batch,
            "compile": arguments.compile,
            "tf32": arguments.tf32,
            "repeats": arguments.repeats,
            "machine": machine(device),
        }
        print(json.dumps({**about, **result}))
    return 0


def _print_table(result: dict[str, object]) -> None:
    splits = result["split"]
    assert isinstance(splits, dict)
    columns = [*next(iter(splits.values()))]
    print(f"{'seconds a step':<16}" + "".join(f"{name:>21}" for name in columns))
    for form, parts in splits.items():
        print(f"{form:<16}" + "".join(f"{parts[name]:>21.4f}" for name in columns))
    for form in ("exact", "fast"):
        print(f"{form}: {result[f'{form}_ratio']} times the baseline's speed, quartiles {result[f'{form}_spread']}")


if __name__ == "__main__":
    sys.exit(main())
