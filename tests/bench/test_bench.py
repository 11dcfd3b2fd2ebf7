"""rarefy bench: where the time goes, the batch that auto picks, the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rarefy.bench import bench
from rarefy.bench.bench import GAIN, LARGEST, Bench, BenchOptions, Point, bench_manifest, find_batch, measure
from rarefy.bench.measure import ratios, spread
from rarefy.bench.step import Execution, Split, load, time_steps
from rarefy.cli import main
from rarefy.diffusion.settings import SamplerSettings
from rarefy.errors import DeviceError
from rarefy.guidance.terms import ClassifierGuidance, LowConfidence
from rarefy.models.config import NetworkConfig, OtherNetwork
from rarefy.models.folder import find_model
from rarefy.models.load import Models

EMBEDDED = find_model("fashion-mnist-28")
SMALL = NetworkConfig(
    image_size=8, in_channels=1, model_channels=32, out_channels=2, num_res_blocks=1, attention_resolutions=(),
    channel_mult=(1,), num_classes=10, num_head_channels=32,
)  # fmt: skip
SMALL_PRESET = replace(EMBEDDED, unet=SMALL, classifier=replace(SMALL, num_classes=None, out_channels=10), files={})


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    """The command sets torch's threads for its own process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    """On a clock of their own the U-Net takes 3 s, the classifier 1 s and its gradient 2 s; nothing else takes any."""
    now = [0.0]
    monkeypatch.setattr("rarefy.bench.step.clock", lambda device, wall: now[0])
    models = load(SMALL_PRESET, None, Execution(compile="off"), 2)
    unet, classifier = models.unet.forward, models.classifier.forward

    def denoise(*arguments: Tensor) -> Tensor:
        now[0] += 3
        return unet(*arguments)

    def classify(x: Tensor, t: Tensor) -> Tensor:
        x = x.view_as(x)
        x.register_hook(lambda _: now.__setitem__(0, now[0] + 2))
        now[0] += 1
        return classifier(x, t)

    models.unet.__dict__["forward"], models.classifier.__dict__["forward"] = denoise, classify
    return models


def test_the_parts_of_a_step(models: Models) -> None:
    chain = SamplerSettings(steps="4").chain(SMALL_PRESET, (LowConfidence(),))
    assert time_steps(models, chain, 2, wall=False) == Split(3, 1, 2, 0)
    assert time_steps(models, replace(chain, terms=()), 2, wall=False) == Split(3, 0, 0, 0)


def test_a_window_counts_for_its_fraction_of_the_steps(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """t = 0, 111, ..., 999: five of ten steps have the classifier."""
    monkeypatch.setattr("rarefy.bench.step.MIN_STEPS", 10)
    chain = SamplerSettings(steps="10").chain(SMALL_PRESET, (ClassifierGuidance(window=(0, 450)),))
    assert time_steps(models, chain, 2, wall=False) == Split(3, 0.5, 1, 0)


def test_spread_and_ratios_by_hand() -> None:
    assert astuple(spread([4.0, 1.0, 2.0, 3.0, 5.0])) == (3.0, 2.0, 4.0)
    assert astuple(spread([7.0])) == (7.0, 7.0, 7.0)
    assert ratios([2.0, 6.0, 12.0], [1.0, 2.0, 3.0]).median == 3.0


def speeds(rate: Callable[[int], float], bytes_per_image: int) -> Callable[[int], Point]:
    """A machine that holds 1,000 bytes with the models loaded."""
    split = Split(0.0, 0.0, 0.0, 0.0)
    return lambda batch: Point(1, batch, 28, 1.0, split, rate(batch), 1000 + batch * bytes_per_image, 1000)


def test_auto_stops_where_the_next_batch_gains_too_little() -> None:
    # b / (b + 1): 8 gains 8/9 over 4/5, 11 %; 16 gains 5.9 %; 32 gains 3.0 %.
    points, best, reason = find_batch(speeds(lambda b: b / (b + 1), 1), 1, 10**9)
    assert (best, list(points)) == (16, [1, 2, 4, 8, 16, 32])
    assert "32" in reason and "+3.0%" in reason


@pytest.mark.parametrize(("limit", "batch"), [(1600, 16), (3199, 16), (3200, 32)])
def test_auto_stops_before_memory_is_full(limit: int, batch: int) -> None:
    """100 bytes per image: 1,600 at 16, 3,200 at 32."""
    points, best, reason = find_batch(speeds(float, 100), 2, limit)
    assert (best, max(points)) == (batch, batch)
    assert "would take" in reason


def test_auto_ends() -> None:
    _, best, _ = find_batch(speeds(float, 0), 3, 10**9)
    assert LARGEST / 2 < best <= LARGEST
    points, best, _ = find_batch(speeds(lambda b: 1 + GAIN if b > 1 else 1.0, 0), 1, 10**9)
    assert (best, list(points)) == (2, [1, 2, 4])


def test_missing_weights_are_random(tmp_path: Path) -> None:
    manifest = bench_manifest(None, None, None)
    assert len(load(EMBEDDED, manifest.model, Execution(), 1).checkpoint_sha256) == 64
    path = tmp_path / "away.toml"
    path.write_text(manifest.text.replace("sampler.", 'model.checkpoint = "away.pt"\nsampler.'))
    away = bench_manifest(str(path), None, None)
    assert away.preset == EMBEDDED
    assert load(EMBEDDED, away.model, Execution(), 1).checkpoint_sha256 == "random"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few steps as can be measured."""
    monkeypatch.setattr("rarefy.bench.step.ENOUGH_S", 0.0)


@pytest.mark.usefixtures("short")
def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--batch", "2,1", "--growth", "--actors", "1", "--compile", "off", "--precision", "fast"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["preset"], result["precision"], result["steps"]) == (EMBEDDED.name, "fast", 250)
    assert (result["weights"], result["machine"]["torch"]) == ("loaded", torch.__version__)
    assert [point["batch"] for point in result["batches"]] == [1, 2]
    assert [(point["image_size"], point["batch"]) for point in result["sizes"]] == [(56, 2)]
    assert [point["actors"] for point in result["actors"]] == [1]
    for point in (*result["batches"], *result["sizes"], *result["actors"]):
        assert point["seconds_a_step"] == pytest.approx(sum(point["split"].values()))
        assert min(point["split"].values()) > 0
        assert point["peak_bytes"] >= point["loaded_bytes"] > 4e6
    for point in (*result["batches"], *result["sizes"]):
        assert point["images_per_second"] == pytest.approx(point["batch"] / (250 * point["seconds_a_step"]))


@pytest.mark.usefixtures("short")
def test_peak_is_never_below_the_loaded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter((1_444_450_304, 1_444_429_824))  # what one machine's kernel reported: five pages fewer later
    monkeypatch.setattr("rarefy.bench.bench.peak_bytes", lambda device: next(readings))
    point = measure(bench_manifest(None, None, None), Execution(), 1, 1, 1)
    assert (point.loaded_bytes, point.peak_bytes) == (1_444_450_304, 1_444_450_304)


def test_actors_speeds_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of which each makes 3 images/s."""
    point = speeds(lambda _: 3.0, 1)(4)

    class Pool:
        def __init__(self, actors: int, context: object) -> None: ...
        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None: ...
        def submit(self, *_: object) -> Pool:
            return self

        def result(self) -> Point:
            return point

    monkeypatch.setattr(bench, "ProcessPoolExecutor", Pool)
    said: list[str] = []
    whole = bench.Bench(bench_manifest(None, None, None), bench.BenchOptions(), said.append).point(4, actors=2)
    assert (whole.actors, whole.images_per_second, whole.batch) == (2, 6.0, 4)
    assert len(said) == 1


@pytest.mark.usefixtures("short")
def test_table_of_auto(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "GAIN", 10.0)
    assert main(["bench", "--batch", "auto", "--compile", "off"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(line for line in lines if "images/s" in line)
    rows = [line for line in lines if line.split() and line.split()[0].isdecimal()]
    assert len(rows) >= 2 and {len(row) for row in rows} == {len(header)}
    chosen = next(line for line in lines if line.startswith("batch = "))
    assert int(chosen.removeprefix("batch = ")) in [int(row.split()[1]) for row in rows]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["none.toml"], ["none.toml", "readable"]),
        (["--preset", "adm"], ["'adm'", "adm-imagenet-64"]),
        (["none.toml", "--preset", "adm-imagenet-64"], ["preset", "manifest"]),
        (["--batch", "0"], ["batch", "'0'", "auto or whole numbers from 1"]),
        (["--batch", "4,big"], ["batch", "'4,big'"]),
        (["--actors", "65"], ["actors", "'65'", "from 1 to 64"]),
        (["--threads", "0"], ["threads", "0", "from 1"]),
        (["--device", "tpu"], ["device", "'tpu'", "cpu, cuda or cuda:N"]),
        (["--compile", "all"], ["--compile", "all", "full"]),
        (["--precision", "bf16"], ["--precision", "bf16"]),
    ],
)
def test_bad_input(arguments: list[str], named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rarefy: error: ") and captured.err.count("\n") == 1
    assert all(part in captured.err for part in named), captured.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cuda"]) == 2
    assert "torch finds no GPU" in capsys.readouterr().err


def test_twice_the_image_size_is_for_adm_alone() -> None:
    manifest = bench_manifest(None, None, None)
    folder = replace(manifest.model.folder, unet=OtherNetwork("diffusers", 28, 1, 1))
    other = replace(manifest, model=replace(manifest.model, folder=folder))
    Bench(other, BenchOptions(), say=print)
    with pytest.raises(DeviceError, match="growth: 'diffusers' is not adm"):
        Bench(other, BenchOptions(growth=True), say=print)
