"""Every benchmark in its smallest form, and the arithmetic behind its figures by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import audit, command, pipeline, precision, step, training
from rarefy.execution import has_bfloat16
from rarefy.generate.actor import ShardGenerator
from rarefy.generate.driver import GenerateOptions
from rarefy.generate.progress import ProgressSink, Status
from rarefy.manifest import Manifest
from rarefy.models.folder import find_model
from rarefy.plan import make_plan
from rarefy.shards.claim import claim_output
from rarefy.shards.store import Store

FRESH_PROCESS = command.fresh_process
CPU = {"threads": 1, "device": "cpu", "repeats": 2, "json": True}


class HereAndNow:
    """A pool of one new process that is this one."""

    def __init__(self, initializer: Any = int, *arguments: Any) -> None:
        self.initializer, self.arguments, self.here = initializer, arguments, dict[str, Any]()

    def __enter__(self) -> HereAndNow:
        self.initializer(*self.arguments)
        self.here = dict(command._here)
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, work: Any, *arguments: Any) -> Future[Any]:
        command._here.update(self.here)
        future: Future[Any] = Future()
        future.set_result(work(*arguments))
        return future


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "fresh_process", HereAndNow)
    monkeypatch.setattr(pipeline, "fresh_process", HereAndNow)
    monkeypatch.setattr("os.nice", lambda _: 0)


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"device", "torch", "date"} <= set(result["machine"])
    return result


def test_forms_take_turns_and_the_warm_up_does_not_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The peer takes 100 s at first, then 6 and 12 s; ours 50 s, then 3 and 4 s."""
    seconds, now, order = {"peer": [100.0, 6.0, 12.0], "ours": [50.0, 3.0, 4.0]}, [0.0], []

    def start(form: str, options: Namespace) -> Any:
        def work() -> None:
            order.append(form)
            now[0] += seconds[form].pop(0)

        return work

    monkeypatch.setattr(command, "clock", lambda device: now[0])
    monkeypatch.setattr(command, "peak_bytes", lambda device: 10 * len(order))
    command.compare(start, ["ours"], ["peer"], Namespace(**CPU), warm_up=1)
    assert order == ["peer", "ours"] * 3
    result = last_json(capsys)
    assert result["ours/peer"]["speed"] == {"median": 2.5, "low": 2.25, "high": 2.75}
    assert result["seconds"] == {"peer": 9.0, "ours": 3.5}
    assert result["ours/peer"]["memory"] == pytest.approx(60 / 50)


@pytest.mark.slow
def test_training_in_processes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The one test that starts the processes."""
    monkeypatch.setattr(command, "fresh_process", FRESH_PROCESS)
    training.main(["--batch", "1", "--repeats", "1", "--json"])
    result = last_json(capsys)
    assert result["rarefy/baseline"]["speed"]["median"] > 0
    weights = 4 * sum(
        parameter.numel() for parameter in training.build_unet(find_model("fashion-mnist-28").unet).parameters()
    )
    assert min(result["peak_bytes"].values()) > 4 * weights  # weights, average, and the optimiser's two moments


@pytest.mark.parametrize("form", ["baseline", "exact", "fast"])
def test_all_forms_take_the_same_step(form: str) -> None:
    options = Namespace(**CPU, model="embedded", batch=2, compile="off", tf32=False)
    torch.manual_seed(0)
    state: Any = step.start(form, options)()
    assert (state.t, state.x.shape) == (999, (2, 1, 28, 28))
    torch.manual_seed(0)
    expected: Any = step.start("exact", options)()
    assert (state.x - expected.x).norm() / expected.x.norm() < 1e-2


@pytest.mark.parametrize("form", ["baseline", "rarefy"])
def test_a_training_step_changes_the_weights(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = []

    def build(config: Any) -> Any:
        networks.append(unet(config))
        return networks[-1]

    unet = training.build_unet
    monkeypatch.setattr(training, "build_unet", build)
    work = training.start(form, Namespace(**CPU, batch=2, data=None))
    before = [parameter.detach().clone() for parameter in networks[0].parameters()]
    work()
    assert not all(torch.equal(a, b) for a, b in zip(before, networks[0].parameters(), strict=True))


@pytest.mark.parametrize("peer", ["torch-fidelity", "prdc"])
def test_programs_agree_on_precision_and_recall(peer: str) -> None:
    options = Namespace(**CPU, n=300, dim=32, k=3)
    ours, theirs = audit.start("rarefy", options)(), audit.start(peer, options)()
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert isinstance(ours, tuple) and 0 < min(ours) < 1


def generate_here(manifest: Manifest, options: GenerateOptions, progress: ProgressSink) -> None:
    """Without Ray."""
    store, total = Store(options.out), manifest.total
    claim_output(store, manifest.text, manifest.digest)
    actor = ShardGenerator(manifest, options.out, "cpu", 1)
    actor.load()
    progress(Status(0, total, 0, 0.0, None, 1, 1, 0, None, None))
    for number in range(make_plan(manifest).num_shards):
        actor.generate(number, "attempt")
    progress(Status(total, total, 0, 0.0, None, 1, 1, 0, None, None))


def test_pipeline_and_bare_loop_make_the_same_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "generate", generate_here)
    sizes = {"images": 12, "steps": 2, "batch": 2, "shard-size": 5, "repeats": 1}
    pipeline.main(["--json", *(f"--{name}={size}" for name, size in sizes.items())])
    result = last_json(capsys)
    assert result["same_images"] is True
    assert result["wall_ratio"]["median"] > 0 and result["cpu_ratio"]["median"] > 0
    assert result["startup_s"] > 0


def test_cpu_time_of_a_family_has_that_of_children() -> None:
    child = subprocess.Popen([sys.executable, "-c", "sum(range(10**7)); print(); input()"], stdin=-1, stdout=-1)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        seconds = pipeline.family_cpu()
        assert seconds[child.pid] > 0.05
        assert abs(seconds[os.getpid()] - time.process_time()) < 1
    finally:
        child.communicate(b"\n")
    assert child.pid not in pipeline.family_cpu()


@pytest.mark.skipif(not has_bfloat16(torch.device("cpu")), reason="needs a processor that multiplies bfloat16")
def test_precision_writes_what_the_page_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One pixel in four of the images differs by two levels."""

    def images(models: Any, guidance: Any, options: Any) -> Any:
        pixels = np.zeros((2, 1, 2, 2), np.int16)
        pixels[..., 0, 0] = 2 * (models.unet.dtype == torch.bfloat16)
        return pixels

    monkeypatch.setattr(precision, "make_images", images)
    path = tmp_path / "fast.json"
    precision.main(["--terms", "classifier", "--images", "2", "--save", str(path)])
    result = json.loads(path.read_text())
    low, high = result["eps"]
    assert 1e-4 < low < high < 0.1 and 1e-4 < result["gradient"][0] < 0.1
    assert result["pixels_above_1"] == 0.25
    page = json.loads((find_model("fashion-mnist-28").path / "fast.json").read_text())
    assert result["checkpoint_sha256"] == page["checkpoint_sha256"]
    assert set(result) <= set(page)


def test_the_worst_of_all_sets() -> None:
    first = {"eps": [0.5, 0.2], "gradient": [], "pixels_above_1": [0.01]}
    second = {"eps": [0.1], "gradient": [0.3, 0.2], "pixels_above_1": [0.03]}
    result = precision.worst([first, second])
    assert result == {"eps": [0.1, 0.5], "gradient": [0.2, 0.3], "pixels_above_1": 0.03}


def test_the_loader_is_timed_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(training, "LOADER_SECONDS", 0.1)
    training.main(["--loader", "--batch", "2", "--repeats", "1", "--json"])
    result = last_json(capsys)
    assert result["loader_images_per_s"] > 0 and result["step_images_per_s"] > 0
