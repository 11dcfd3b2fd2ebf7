"""The benchmark commands at their smallest size, and the arithmetic behind their figures by hand."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import (
    kernels,
    manifests,
    memory,
    memory_row,
    overhead,
    overhead_work,
    precision,
    precision_work,
    startup,
    step,
    training,
)
from rarefy.bench.processes import family
from rarefy.fast.cpu import native
from rarefy.models.adm import Classifier, UNet
from rarefy.models.folder import find_model

needs_compiler = pytest.mark.skipif(not native.available(), reason="needs a C++ compiler")
TINY = [
    "--terms",
    "classifier",
    "--steps",
    "2",
    "--batch",
    "2",
    "--pixel-images",
    "2",
    "--times",
    "50",
    "--threads",
    "1",
]


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"device", "torch", "date"} <= set(found["machine"])
    return found


def test_exact_against_itself_has_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = ["--metric-terms", "demo", "--images", "8", "--seeds", "1", "--reference", "8", "--against", "exact"]
    assert precision.main([*TINY, *metrics, "--json", "--out", str(tmp_path)]) == 0
    found = last_json(capsys)
    assert found["errors"]["classifier"]["eps"]["50"] == {"batch": 0, "median": 0, "worst": 0}
    assert found["errors"]["classifier"]["gradient"]["50"]["worst"] == 0
    assert found["pixels"]["classifier"] == {"mean": 0, "max": 0, "above_1": 0, "above_8": 0}
    for name in ("fid", "recall", "confidence", "entropy", "own_confidence"):
        assert found["metrics"]["demo"][name]["differences"] == [0]
    assert 0 < found["metrics"]["demo"]["confidence"]["exact"] < 1
    assert 0 < found["metrics"]["demo"]["entropy"]["exact"] < math.log(10)


def test_fast_has_an_error_and_rows_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, "--metric-terms", "--eager", "--json", "--out", str(tmp_path)]
    assert precision.main(arguments) == 0
    found = last_json(capsys)
    for name in ("eps", "gradient"):
        error = found["errors"]["classifier"][name]["50"]
        assert 1e-4 < error["batch"] <= error["worst"] < 0.2
    pixels = found["pixels"]["classifier"]
    assert 0 <= pixels["above_8"] <= pixels["above_1"] <= 1
    assert 0 < pixels["mean"] <= pixels["max"] <= 255
    rows = tmp_path / "rows.jsonl"
    whole = rows.read_text()
    assert precision.main(arguments) == 0
    assert last_json(capsys)["errors"] == found["errors"]
    assert rows.read_text() == whole
    rows.write_text(whole[:-20])  # killed while the last row was written
    assert precision.main(arguments) == 0
    assert last_json(capsys)["pixels"] == found["pixels"]
    assert len(precision.read_rows(rows)) == 2


def test_differences_by_hand() -> None:
    seeds = [{"exact": {"fid": e}, "against": {"fid": a}} for e, a in ((1.0, 1.5), (2.0, 2.5), (3.0, 3.0))]
    assert precision.differences(seeds)["fid"] == {
        "exact": 2.0,
        "exact_std": 1.0,
        "difference": pytest.approx(1 / 3),
        "differences": [0.5, 0.5, 0.0],
        "within": True,
    }
    assert precision.differences(seeds[:1])["fid"]["within"] is None


def test_headline_is_the_worst_of_all_terms() -> None:
    def metrics(difference: float) -> dict[str, Any]:
        return {name: {"difference": difference, "exact_std": 2.0} for name in precision.HEADLINES}

    found = {
        "errors": {
            "none": {"eps": {"2": {"batch": 0.5}}, "gradient": {}},
            "demo": {"eps": {"2": {"batch": 0.1}}, "gradient": {"2": {"batch": 0.3}, "900": {"batch": 0.2}}},
        },
        "pixels": {"none": {"above_1": 0.01}, "demo": {"above_1": 0.03}},
        "metrics": {"none": metrics(-3.0), "demo": metrics(1.0)},
    }
    worst = precision.headline(found)
    assert (worst["eps"], worst["gradient"], worst["pixels_above_1"]) == ([0.1, 0.5], [0.2, 0.3], 0.03)
    assert worst["metrics"]["fid"] == {"difference": -3.0, "std": 2.0}


def test_errors_by_hand() -> None:
    wanted = torch.tensor([[3.0, 4.0], [0.0, 10.0]])
    found = precision_work.relative_error(wanted + torch.tensor([[0.0, 5.0], [0.0, 1.0]]), wanted)
    assert found == pytest.approx({"batch": math.sqrt(26 / 125), "median": 0.1, "worst": 1.0})
    dark, bright = np.zeros((1, 1, 2, 2), np.uint8), np.array([0, 1, 2, 200], np.uint8).reshape(1, 1, 2, 2)
    expected = {"mean": 203 / 4, "max": 200, "above_1": 0.5, "above_8": 0.25}
    assert precision_work.pixel_difference(dark, bright) == expected


def test_live_counts_what_is_alive() -> None:
    with memory_row.Live() as live:
        a = torch.empty(1000)
        view = a[:10]
        b = a + 1
        del a, view
        assert live.now() == 4000
        c = b * 2
        del b, c
    assert live.now() == 0
    assert live.peak == 8000


@pytest.mark.slow
def test_memory(capsys: pytest.CaptureFixture[str]) -> None:
    size = "--preset fashion-mnist-28 --modes exact --batch 2 --steps 1 --json"
    assert memory.main(size.split()) == 0
    found = last_json(capsys)["bytes"]["exact"]
    preset = find_model("fashion-mnist-28")
    networks = [UNet(preset.unet), Classifier(preset.classifier)]
    assert found["weights"] == 4 * sum(p.numel() for network in networks for p in network.parameters())
    # 32 channels twice at 28 px, 32 and 64 at 14, 64 and 96 at 7; float32, 2 images
    assert found["skips"] == 2 * 4 * (2 * 32 * 28**2 + (32 + 64) * 14**2 + (64 + 96) * 7**2)
    assert found["unet_row"] == found["skips"] + found["unet_block"]
    assert found["row"] == max(found["unet_row"], found["saved"] + found["classifier_block"])
    assert found["live"] > found["saved"] > 0
    assert found["peak"] >= found["loaded"] > found["weights"]
    assert found["ratio"] == pytest.approx(found["peak"] / (1.2 * found["weights"] + found["row"]))


@pytest.mark.slow
def test_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main(["--model", "embedded", "--batch", "2", "--repeats", "2", "--json"]) == 0
    found = last_json(capsys)
    for form, parts in found["split"].items():
        assert min(parts.values()) >= 0
        assert sum(parts.values()) == pytest.approx(found["seconds_a_step"][form], rel=0.5)  # medians of two, a part
    for form in ("exact", "fast"):
        low, high = found[f"{form}_spread"]
        assert 0 < low <= found[f"{form}_ratio"] <= high


@pytest.mark.slow
def test_overhead(capsys: pytest.CaptureFixture[str]) -> None:
    size = "--images 8 --steps 2 --batch 2 --shard-size 4 --actors 1 --threads 2 --repeats 1 --json"
    assert overhead.main(size.split()) == 0
    found = last_json(capsys)
    assert found["same_images"] is True
    for clock in ("wall", "cpu"):
        figures = {name: spread["median"] for name, spread in found[clock].items()}
        assert min(figures.values()) >= 0
        assert figures["ratio"] == pytest.approx(figures["bare_s"] / figures["pipeline_s"])
        assert figures["pipeline_s"] == pytest.approx(figures["generating_s"] + figures["seal_s"])
        assert 0 < figures["ratio_with_startup"] < figures["ratio"]
    shares = [figures[f"generating_{name}_s"] for name in ("actors", "driver", "ray")]  # of the CPU's, the last clock
    assert shares[0] > 0 and min(shares) >= 0  # whole ticks of 10 ms
    assert sum(shares) == pytest.approx(figures["generating_s"])


def test_batches_of_the_bare_loop() -> None:
    text = manifests.MANIFEST.format(images=25, steps=2, batch=4, shard_size=10, precision="exact")
    load = overhead_work.Load(text, 1, 2)
    batches = overhead_work.plan_batches(load.manifest)
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2, 4, 1]
    assert len({(slot.class_id, slot.class_index) for batch in batches for slot in batch}) == 25


@pytest.mark.slow
def test_startup(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--cases cold --steps 2 --threads 1 --repeats 1 --warm-up 0 --json"
    assert startup.main(arguments.split()) == 0
    found = last_json(capsys)
    stages = {name: spread["median"] for name, spread in found["first_image_s"]["cold"].items()}
    assert all(seconds > 0 for seconds in stages.values())
    assert sum(stages[name] for name in startup.STAGES) == pytest.approx(stages["total"])
    assert found["help_s"]["median"] > 0
    assert found["cache_files"] == native.available()  # the kernels that it built


def test_a_training_step_is_timed_and_its_gradient_is_the_baselines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["training.py", "--batch", "4", "--repeats", "2", "--threads", "1", "--json"])
    assert training.main() == 0
    found = last_json(capsys)
    assert found["repeats"] == 2
    assert found["training_ratio"] > 0
    assert all(speed > 0 for speed in found["images_per_s"].values())
    shares, speeds = found["of_ceiling"], found["images_per_s"]
    assert 0 < shares["baseline"] < 1  # no direct computation passes it
    if not native.has_bfloat16():  # one ceiling for both
        assert shares["rarefy"] / shares["baseline"] == pytest.approx(speeds["rarefy"] / speeds["baseline"], rel=0.1)
    for form in ("", "_without_kernels"):
        assert 0 < found[f"gradient_error{form}"] < (0.1 if native.has_bfloat16() else 1e-4)
    assert found["other_batch"] > 0.1


def test_family_finds_a_child() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        found = family(os.getpid())
        assert found[0].pid == os.getpid()
        (seen,) = [process for process in found if process.pid == child.pid]
        assert seen.parent == os.getpid()
        assert found[0].started <= seen.started
        assert found[0].cpu_s > 0
    finally:
        child.communicate(b"\n")
    assert child.pid not in {process.pid for process in family(os.getpid())}


@needs_compiler
@pytest.mark.parametrize("out", [32, 2])
def test_kernels_are_timed_beside_torchs_and_are_as_exact(out: int) -> None:
    times = kernels.conv_times((2, 32, out, 8), torch.float32, 1)
    timed = {name for name in times if "error" not in name}
    what = ["", " gradient", " weights"] if out == 32 else ["", " weights"]  # two channels' gradient comes out by torch
    assert timed == {"torch gradient"} | {form + of for form in ("torch", "native") for of in what}
    assert all(value > 0 for value in times.values())
    for of in what:
        assert times[f"native{of} error"] < 20 * times[f"torch{of} error"]
    assert set(kernels.norm_times(1, 32, 2, torch.float32, 1)) >= {"torch", "eager", "native", "native + backward"}
