"""``rarefy train``: the files of a run, and resuming a killed, stopped or diverged one."""

from __future__ import annotations

import json
import math
import signal
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_training import CPU, MODEL, SETTINGS, images, start_small
from torch import Tensor, nn

from rarefy.cli import main
from rarefy.diffusion.schedule import make_schedule
from rarefy.models.adm import Classifier, UNet
from rarefy.models.folder import find_model
from rarefy.training import held_out, loop, recipe, run, samples
from rarefy.training.held_out import accuracy_at
from rarefy.training.recipe import Recipe
from rarefy.training.samples import averaged_network, save_grid
from rarefy.training.settings import TrainSettings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images and a recipe of three steps for the small networks."""
    monkeypatch.setattr(recipe, "find_model", lambda name: MODEL)
    data = images(20)
    for row in range(20):
        (tmp_path / "data" / str(data.labels[row])).mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images[row, 0]).save(tmp_path / "data" / str(data.labels[row]) / f"{row}.png")
    (tmp_path / "r.toml").write_text(
        'preset = "tiny"\ndata = "data"\n[train]\nimages = 12\nbatch = 4\nprecision = "float32"\nwarmup = 0\n'
    )
    return tmp_path


def run_cli(folder: Path, kind: str, *options: str) -> int:
    command = ["train", kind, str(folder / "r.toml"), "--out", str(folder / "out"), "--device", "cpu"]
    return main([*command, *options])


@pytest.mark.parametrize("kind", ["diffusion", "classifier"])
def test_a_run_leaves_weights_that_load_and_their_provenance(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(folder, kind, "--json") == 0
    result, out = json.loads(capsys.readouterr().out), folder / "out"
    assert result["images"] == 12 and result == json.loads((out / "provenance.json").read_text())
    weights, checkpoint = load_file(out / "weights.safetensors"), torch.load(out / "state.pt", weights_only=True)
    network = UNet(MODEL.unet) if kind == "diffusion" else Classifier(MODEL.classifier)
    network.load_state_dict(weights)
    assert all(torch.equal(weights[name], value) for name, value in checkpoint["ema"].items())
    assert not all(torch.equal(weights[name], value) for name, value in checkpoint["model"].items())
    assert len(list(out.glob("samples-*.png"))) == (kind == "diffusion")
    (folder / "r.toml").write_text((folder / "r.toml").read_text() + "lr = 1e-3\n")
    assert run_cli(folder, kind) == 2
    assert "train.lr: 0.001 is not 0.0003, with which the run" in capsys.readouterr().err


def signal_in_step(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM to this process during step ``number``."""
    step = loop.train_step

    def train_step(state: Any, *arguments: Any) -> dict[str, Tensor]:
        if state.step + 1 == number:
            signal.raise_signal(signal.SIGTERM)
        return step(state, *arguments)

    monkeypatch.setattr(loop, "train_step", train_step)


def test_a_stopped_and_a_diverged_run_go_on_from_the_last_good_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(2, patch)
        assert run_cli(folder, "classifier") == 143
    assert "run the same command to resume" in capsys.readouterr().err
    good = (out / "state.pt").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainSettings, "lr_at", lambda self, step: math.inf)
        assert run_cli(folder, "classifier") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("rarefy: error: train: training diverged, the weights are not finite at step 3 (loss ")
    assert (out / "state.pt").read_bytes() == good and not (out / "weights.safetensors").exists()
    assert run_cli(folder, "classifier") == 0
    assert torch.load(out / "state.pt", weights_only=True)["step"] == 3


def test_a_resumed_log_has_each_step_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between checkpoints leaves entries of steps that are repeated, and half an entry."""
    monkeypatch.setattr(loop, "REPORT_EVERY_S", 0.0)
    log = folder / "out" / "log.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(2, patch)
        assert run_cli(folder, "classifier") == 143
    first = log.read_text()
    log.write_text(first + first.replace('"images": 4', '"images": 8') + first.replace('"images": 4', '"images": 12'))
    with log.open("a") as file:
        file.write('{"images": 1')
    assert run_cli(folder, "classifier") == 0
    assert [json.loads(line)["images"] for line in log.read_text().splitlines()] == [4, 8, 12]
    assert log.read_text().startswith(first)


def test_a_run_stopped_in_its_last_step_can_be_finished(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(3, patch)
        assert run_cli(folder, "diffusion") == 143
    assert run_cli(folder, "diffusion") == 0
    assert json.loads((folder / "out" / "provenance.json").read_text())["curve"] == []


def test_a_batch_that_the_processes_cannot_share_equally_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "place", lambda: (0, 3))
    assert run_cli(folder, "classifier") == 2
    assert "train.batch: 4 is not divisible by the 3 processes" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_the_grid_shows_the_average_a_few_images_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, sizes, chain = start_small("diffusion", SETTINGS, tmp_path), [], samples.reverse_chain
    for value in state.ema.values():  # random, because all weights give the same image if the last layer is zero
        value.normal_(std=0.05, generator=torch.Generator().manual_seed(value.numel()))

    def counted(networks: Any, settings: Any, x_T: Tensor, *arguments: Any) -> Any:
        sizes.append(len(x_T))
        return chain(networks, settings, x_T, *arguments)

    monkeypatch.setattr(samples, "reverse_chain", counted)
    network = averaged_network(Recipe("diffusion", "train", MODEL, tmp_path, SETTINGS), state.ema, CPU)
    save_grid(network, MODEL, tmp_path / "whole.png")
    monkeypatch.setattr(samples, "BATCH_PIXELS", 15 * 64)
    save_grid(network, MODEL, tmp_path / "parts.png")
    assert sizes == [40, 15, 15, 10]
    whole, parts = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("whole", "parts"))
    assert whole.shape == (4 * 8, 10 * 8) and whole.std() > 10
    assert np.abs(whole - parts).max() <= 1
    assert samples.BATCH_PIXELS // 512**2 == 0  # at that size, one image at a time


def test_a_given_ect_replaces_the_recipes_and_a_resumed_run_must_have_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, copy = folder / "r.toml", folder / "out" / "recipe.toml"
    path.write_text("ect = 0.3  # theirs\n" + path.read_text())
    assert run_cli(folder, "classifier", "--ect", "0.1") == 0
    assert tomllib.loads(copy.read_text())["ect"] == 0.1
    provenance = json.loads((folder / "out" / "provenance.json").read_text())
    assert provenance["recipe"] == copy.read_text()
    capsys.readouterr()
    for other, value in ([], 0.3), (["--ect", "0.2"], 0.2):
        assert run_cli(folder, "classifier", *other) == 2
        assert f"ect: {value} is not 0.1, with which the run" in capsys.readouterr().err
    assert run_cli(folder, "classifier", "--ect", "0.1") == 0


def test_initial_weights_that_do_not_fit_leave_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"other": torch.zeros(1)}, folder / "init.safetensors")
    (folder / "r.toml").write_text('init = "init.safetensors"\n' + (folder / "r.toml").read_text())
    assert run_cli(folder, "diffusion") == 2
    assert "init.safetensors" in capsys.readouterr().err
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda:99"], "device: 'cuda:99' is not available here"),
        (["--device", "gpu"], "device: 'gpu' is not cpu, cuda or cuda:N"),
        (["--threads", "0"], "threads: 0 is not an integer from 1"),
    ],
)
def test_devices_and_threads_are_checked_before_anything_is_written(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(folder, "diffusion", *options) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_an_unconditional_network_starts_as_the_mean_class() -> None:
    preset = find_model("fashion-mnist-28")
    conditional = UNet(preset.unet)
    weight = conditional.label_emb.weight
    with torch.no_grad():
        for parameter in conditional.parameters():
            parameter.normal_(std=0.05)
        weight[:] = weight.mean(0)
    unconditional = UNet(find_model("fashion-mnist-28-uncond").unet)
    unconditional.load_state_dict(run.without_classes(conditional.state_dict()))
    x, t = torch.randn(3, 1, 28, 28), torch.tensor([0.0, 400.0, 999.0])
    expected = conditional.eval()(x, t, torch.tensor([0, 4, 9]))
    torch.testing.assert_close(unconditional.eval()(x, t), expected, rtol=1e-4, atol=1e-5)
    state = unconditional.state_dict()
    assert run.without_classes(state) is state


def test_accuracy_counts_hits(monkeypatch: pytest.MonkeyPatch) -> None:
    class AlwaysThree(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.anchor = nn.Parameter(torch.zeros(1, device=CPU))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return nn.functional.one_hot(torch.full((len(x),), 3), 4).float()

    monkeypatch.setattr(held_out, "BATCH_PIXELS", 7 * 64)
    assert accuracy_at(AlwaysThree(), images(40), make_schedule("cosine", 100), 0) == pytest.approx(0.25)
