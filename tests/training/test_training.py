"""The losses against closed forms, resumption to the step, and what a run leaves."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from webdataset import TarWriter

from rarefy.cli import main
from rarefy.diffusion.schedule import make_schedule
from rarefy.errors import CheckpointError, DataError, DeviceError, ManifestError, OutputError
from rarefy.images import LabelledImages
from rarefy.models.folder import find_model
from rarefy.shards.writer import encode_png
from rarefy.training import recipes
from rarefy.training.classifier import ClassifierLoss, accuracy_at
from rarefy.training.diffusion import HybridLoss
from rarefy.training.loop import Batch, TrainSettings, batch_rows, make_batch, start, train

CPU = torch.device("cpu")
SCHEDULE = make_schedule("cosine", 100)


def batch(seed: int = 0, count: int = 64) -> Batch:
    g = torch.Generator().manual_seed(seed)
    x_0 = torch.rand(count, 1, 8, 8, generator=g) * 2 - 1
    return Batch(x_0, torch.arange(count) % 4, g)


class Oracle(nn.Module):
    """Knows x_0, so it can answer with the true eps; ``v`` picks the variance."""

    config = find_model("adm-imagenet-256-uncond").unet

    def __init__(self, x_0: Tensor, v: float) -> None:
        super().__init__()
        self.x_0, self.v = x_0, v

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        abar = SCHEDULE.alphas_cumprod.float()[t][:, None, None, None]
        eps = (x - abar.sqrt() * self.x_0) / (1 - abar).sqrt()
        return torch.cat([eps, torch.full_like(eps, self.v)], dim=1)


def test_a_perfect_prediction_has_no_loss_but_the_last_steps_bits() -> None:
    """v = -1 is the true posterior variance: the KL vanishes; only t = 0 has a likelihood of its own."""
    b = batch()
    losses = HybridLoss(SCHEDULE, CPU)(Oracle(b.x_0, v=-1.0), b)
    assert losses["mse"].item() < 1e-6
    assert losses["vlb"].item() < 0.2


def test_a_wrong_variance_costs_the_kl_of_two_gaussians() -> None:
    """With the exact mean the bound is 0.5 (exp(-g) - 1 + g) nats, g = log beta - log beta~ at v = 1."""
    schedule = make_schedule("cosine", 100)
    b = batch()
    replay = torch.Generator()
    replay.set_state(b.generator.get_state())
    k = torch.randint(100, (64,), generator=replay)
    losses = HybridLoss(schedule, CPU)(Oracle(b.x_0, v=1.0), b)
    gap = (schedule.betas.log() - schedule.posterior_log_variance)[k]
    kl = 0.5 * ((-gap).exp() - 1 + gap) / math.log(2)
    rest = losses["vlb"].item() - kl[k > 0].sum().item() / 64
    assert abs(rest) < 0.3 * max(1, int((k == 0).sum()))


def test_the_bound_does_not_train_the_mean() -> None:
    class Net(nn.Module):
        config = Oracle.config

        def __init__(self) -> None:
            super().__init__()
            self.eps, self.v = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
            return torch.cat([self.eps.expand_as(x), self.v.expand_as(x)], dim=1)

    net = Net()
    losses = HybridLoss(SCHEDULE, CPU)(net, batch())
    gradient = torch.autograd.grad(losses["vlb"], [net.eps, net.v], allow_unused=True)
    assert gradient[0] is None or gradient[0].abs().item() == 0
    assert gradient[1].abs().item() > 0


@pytest.mark.parametrize("ect", [0.0, 0.1])
def test_classifier_loss_is_cross_entropy_plus_the_entropy_constraint(ect: float) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tensor([2.0, 0.0, 0.0, -1.0]).expand(len(x), 4)

    losses = ClassifierLoss(SCHEDULE, CPU, ect)(Constant(), batch())
    p = torch.tensor([2.0, 0.0, 0.0, -1.0]).softmax(0)
    cross_entropy = -p.log().mean().item()  # the batch's classes are balanced
    constraint = math.log(4) + (p * p.log()).sum().item()
    assert losses["loss"].item() == pytest.approx(cross_entropy + ect * constraint, rel=1e-5)


def test_every_epoch_sees_every_image_once_in_a_fresh_order() -> None:
    rows = np.concatenate([batch_rows(step, 7, 21, seed=5) for step in range(6)])
    first, second = rows[:21], rows[21:]
    assert sorted(first) == sorted(second) == list(range(21))
    assert first.tolist() != second.tolist()


def test_learning_rate_rises_holds_and_falls() -> None:
    settings = TrainSettings(images=1000, batch=10, lr=1.0, warmup=100, decay=0.2)
    assert [settings.lr_at(k) for k in (0, 9, 50, 90, 99)] == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.05])


def tiny_data() -> LabelledImages:
    rng = np.random.default_rng(0)
    return LabelledImages(rng.integers(0, 256, (40, 1, 28, 28), dtype=np.uint8), np.arange(40) % 10, ())


def weights_after(folder: Path, stops: list[int], settings: TrainSettings) -> dict[str, Tensor]:
    """Train the embedded classifier's network, leaving and resuming the run at each stop."""
    data, loss = tiny_data(), ClassifierLoss(make_schedule("cosine", 1000), CPU)
    for stop in stops:
        torch.manual_seed(0)
        network = recipes.Classifier(find_model("fashion-mnist-28").classifier)
        state = start(network, settings, CPU, folder / "state.pt")
        for _ in range(stop - state.step):
            recipes_step(state, loss, data, settings)
        state.save(folder / "state.pt")
    return {name: value.clone() for name, value in state.ema.items()}


def recipes_step(state: object, loss: object, data: LabelledImages, settings: TrainSettings) -> None:
    from rarefy.training.loop import train_step

    train_step(state, loss, data, settings)  # type: ignore[arg-type]


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    settings = TrainSettings(images=24, batch=4, precision="float32", warmup=8)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight = weights_after(tmp_path / "a", [6], settings)
    resumed = weights_after(tmp_path / "b", [2, 3, 6], settings)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_ctrl_c_finishes_the_step_and_leaves_a_checkpoint_of_it(tmp_path: Path) -> None:
    settings = TrainSettings(images=400, batch=4, precision="float32")
    calls = []
    inner = ClassifierLoss(make_schedule("cosine", 1000), CPU)

    def interrupted(model: nn.Module, b: Batch) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return inner(model, b)

    state = start(recipes.Classifier(find_model("fashion-mnist-28").classifier), settings, CPU, tmp_path / "state.pt")
    with pytest.raises(KeyboardInterrupt):
        list(train(state, interrupted, tiny_data(), settings, tmp_path / "state.pt"))
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == len(calls) == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_batches_are_in_the_models_range_and_repeat() -> None:
    settings = TrainSettings(images=100, batch=8)
    one, two = (make_batch(tiny_data(), 3, settings, CPU) for _ in range(2))
    assert torch.equal(one.x_0, two.x_0) and torch.equal(one.y, two.y)
    assert one.x_0.min() >= -1 and one.x_0.max() <= 1 and one.x_0.min() < -0.9
    assert torch.equal(torch.randn(3, generator=one.generator), torch.randn(3, generator=two.generator))


def test_accuracy_counts_hits() -> None:
    class AlwaysThree(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.anchor = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return nn.functional.one_hot(torch.full((len(x),), 3), 10).float()

    assert accuracy_at(AlwaysThree(), tiny_data(), SCHEDULE, 0, batch=7) == pytest.approx(0.1)


def write_folders(root: Path) -> None:
    from PIL import Image

    data = tiny_data()
    for row in range(20):
        folder = root / f"{data.labels[row]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images[row, 0]).save(folder / f"{row}.png")


@pytest.mark.parametrize("kind", ["diffusion", "classifier"])
def test_a_run_leaves_weights_that_load_and_their_provenance(kind: str, tmp_path: Path) -> None:
    write_folders(tmp_path / "data")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'preset = "fashion-mnist-28"\ndata = "{tmp_path / "data"}"\n'
        '[train]\nimages = 8\nbatch = 4\nprecision = "float32"\n'
    )
    out = tmp_path / "out"
    result = recipes.run_training(kind, str(recipe), str(out), "cpu", None)
    assert result["images"] == 8 and result == json.loads((out / "provenance.json").read_text())
    network = recipes.UNet if kind == "diffusion" else recipes.Classifier
    preset = find_model("fashion-mnist-28")
    loaded = network(preset.unet if kind == "diffusion" else preset.classifier)  # type: ignore[operator]
    loaded.load_state_dict(load_file(out / "weights.safetensors"))
    assert len(list(out.glob("samples-*.png"))) == (kind == "diffusion")
    other = tmp_path / "other.toml"
    other.write_text(recipe.read_text() + "lr = 1e-3\n")
    with pytest.raises(OutputError, match="another recipe"):
        recipes.run_training(kind, str(other), str(out), "cpu", None)


@pytest.mark.slow
def test_torchruns_processes_train_one_network_on_shards(tmp_path: Path) -> None:
    data = tiny_data()
    with TarWriter(str(tmp_path / "a-000000.tar"), encoder=False) as tar:
        for row in range(20):
            content = {"png": encode_png(data.images[row]), "cls": str(data.labels[row]).encode()}
            tar.write({"__key__": f"{row:05d}", **content})
    recipe, out = tmp_path / "r.toml", tmp_path / "out"
    recipe.write_text(f'preset = "fashion-mnist-28"\ndata = "{tmp_path}"\n[train]\nimages = 8\nbatch = 4\n')
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "rarefy.cli", "train", "classifier", str(recipe), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"weights: {out}/weights.safetensors"]
    assert json.loads((out / "provenance.json").read_text())["images"] == 8
    assert len((out / "log.jsonl").read_text().splitlines()) == 1
    weights = recipes.Classifier(find_model("fashion-mnist-28").classifier)
    weights.load_state_dict(load_file(out / "weights.safetensors"))


def test_a_given_ect_takes_the_recipes_place_and_a_resumed_run_is_held_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folders(tmp_path / "data")
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text(
        f'preset = "fashion-mnist-28"\ndata = "{tmp_path / "data"}"\nect = 0.3  # theirs\n'
        '[train]\nimages = 4\nbatch = 4\nprecision = "float32"\n'
    )
    command = ["train", "classifier", str(recipe), "--out", str(out), "--device", "cpu"]
    assert main([*command, "--ect", "0.1"]) == 0
    copy = out / "recipe.toml"
    assert tomllib.loads(copy.read_text()) == tomllib.loads(recipe.read_text()) | {"ect": 0.1}
    provenance = json.loads((out / "provenance.json").read_text())
    assert tomllib.loads(provenance["recipe"])["ect"] == 0.1
    assert recipes.load_recipe(copy, "classifier") == recipes.load_recipe(recipe, "classifier", 0.1)
    capsys.readouterr()
    for other in ([], ["--ect", "0.2"]):
        assert main([*command, *other]) == 2
        assert "another recipe" in capsys.readouterr().err
    assert main([*command, "--ect", "0.1"]) == 0


def test_a_given_ect_that_is_the_recipes_own_changes_nothing(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('preset = "fashion-mnist-28"\ndata = "d"\nect = 0.1\n[train]\nimages = 4\n')
    assert recipes.load_recipe(recipe, "classifier", 0.1) == recipes.load_recipe(recipe, "classifier")
    recipe.write_text(recipe.read_text().replace("ect = 0.1\n", ""))
    assert recipes.load_recipe(recipe, "classifier", 0.0).text == recipe.read_text()
    assert recipes.load_recipe(recipe, "classifier", 0.1).ect == 0.1


@pytest.mark.parametrize(
    ("kind", "ect", "message"),
    [
        ("diffusion", "0.1", "ect: 0.1 is not a key of a diffusion recipe"),
        ("classifier", "-1", "ect: -1.0 is not a number of at least 0"),
        ("classifier", "nan", "ect: nan is not a number of at least 0"),
        ("classifier", "much", "--ect: invalid float value: 'much'"),
    ],
)
def test_a_given_ect_that_cannot_be(
    kind: str, ect: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('preset = "fashion-mnist-28"\ndata = "d"\n[train]\nimages = 4\n')
    assert main(["train", kind, str(recipe), "--out", str(tmp_path / "out"), "--ect", ect]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("preset = 1", ManifestError, "preset: 1 is not a string"),
        ('preset = "x"\ndata = "d"\n[train]\nimages = 5', ManifestError, "model.preset: 'x' is not one of"),
        (
            'preset = "fashion-mnist-28"\ndata = "d"\nect = 0.1\n[train]\nimages=5',
            ManifestError,
            "ect: 0.1 is not a key",
        ),
        (
            'preset = "fashion-mnist-28"\ndata = "d"\n[train]\nimages = 0',
            ManifestError,
            "train.images: 0 is not at least 1",
        ),
        ('preset = "fashion-mnist-28"\ndata = "d"\n[train]\nimages = 5\nlr = -1', ManifestError, "train.lr: -1 is not"),
        ('preset = "fashion-mnist-28"\ndata = "d"\n[train]\nsteps = 5', ManifestError, "train.steps: 5 is not one of"),
        ("not toml", ManifestError, "is not TOML"),
        (
            'preset = "fashion-mnist-28"\ndata = "d"\nclean = true\n[train]\nimages = 5',
            ManifestError,
            "clean: True is not a",
        ),
        ('preset = "fashion-mnist-28"\ndata = "/nowhere"\n[train]\nimages = 5', DataError, "data: '/nowhere' is not"),
    ],
)
def test_bad_recipes_name_key_value_and_what_is_allowed(
    text: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(error, match=message):
        recipes.run_training("diffusion", str(tmp_path / "r.toml"), str(tmp_path / "out"), "cpu", None)
    assert not (tmp_path / "out").exists()  # or the corrected recipe would be refused there


def test_weights_to_begin_from_that_do_not_fit_leave_nothing(tmp_path: Path) -> None:
    write_folders(tmp_path / "data")
    save_file({"other": torch.zeros(1)}, tmp_path / "init.safetensors")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'preset = "fashion-mnist-28"\ndata = "{tmp_path / "data"}"\ninit = "{tmp_path / "init.safetensors"}"\n'
        "[train]\nimages = 5\n"
    )
    with pytest.raises(CheckpointError, match=r"init\.safetensors"):
        recipes.run_training("diffusion", str(recipe), str(tmp_path / "out"), "cpu", None)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('preset = "fashion-mnist-28"\ndata = "d"\n[train]\nimages = 5')
    with pytest.raises(DeviceError, match="device: 'cuda' is not available here"):
        recipes.run_training("diffusion", str(tmp_path / "r.toml"), str(tmp_path / "out"), "cuda", None)
    assert not (tmp_path / "out").exists()


def test_an_unconditional_network_begins_as_the_mean_class() -> None:
    preset = find_model("fashion-mnist-28")
    conditional = recipes.UNet(preset.unet)
    weight = conditional.label_emb.weight
    with torch.no_grad():
        for parameter in conditional.parameters():
            parameter.normal_(std=0.05)
        weight[:] = weight.mean(0)
    unconditional = recipes.UNet(find_model("fashion-mnist-28-uncond").unet)
    unconditional.load_state_dict(recipes.without_classes(conditional.state_dict()))
    x, t = torch.randn(3, 1, 28, 28), torch.tensor([0.0, 400.0, 999.0])
    expected = conditional.eval()(x, t, torch.tensor([0, 4, 9]))
    torch.testing.assert_close(unconditional.eval()(x, t), expected, rtol=1e-4, atol=1e-5)
    state = unconditional.state_dict()
    assert recipes.without_classes(state) is state


def test_a_judge_learns_from_images_without_noise() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return torch.zeros(len(x), 4)

    b = batch()
    ClassifierLoss(SCHEDULE, CPU, flip=False, clean=True)(model, b)  # type: ignore[arg-type]
    ClassifierLoss(SCHEDULE, CPU, flip=False)(model, b)  # type: ignore[arg-type]
    (clean, t), (noisy, _) = seen
    assert torch.equal(clean, b.x_0) and not t.any() and not torch.allclose(noisy, b.x_0)
