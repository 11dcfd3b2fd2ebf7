"""The training loop: steps, the moving average, bit-exact resumption, signals and divergence."""

from __future__ import annotations

import dataclasses
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import CPU, SETTINGS, images, network_and_loss, start_small, take_step, training_set
from torch import Tensor, nn

from rarefy.diffusion.schedule import make_schedule
from rarefy.training import loop, step
from rarefy.training.data import Batch, batch_rows, make_batch
from rarefy.training.loop import DivergedError, train
from rarefy.training.losses import ClassifierLoss
from rarefy.training.settings import MAX_SEED, TrainSettings

KINDS = ("diffusion", "classifier")


@pytest.mark.parametrize("kind", KINDS)
def test_30_steps_on_16_images_halve_the_loss(kind: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, images=30 * 16, batch=16, lr=2e-3)
    state, (_, loss) = start_small(kind, settings, tmp_path), network_and_loss(kind)
    if kind == "classifier":  # noise hides the class at most steps of the chain
        loss = ClassifierLoss(make_schedule("cosine", 100), CPU, clean=True)
    losses = [take_step(state, loss, settings)["loss"].item() for _ in range(30)]
    assert np.mean(losses[-5:]) < losses[0] / 2


def test_the_average_moves_by_its_decay(tmp_path: Path) -> None:
    """decay is ``ema``, but at most (1 + step) / (10 + step) in the first steps."""
    settings = dataclasses.replace(SETTINGS, ema=0.15, warmup=24)
    state, (_, loss) = start_small("classifier", settings, tmp_path), network_and_loss("classifier")
    expected = {name: value.clone() for name, value in state.model.state_dict().items()}
    for number, decay in enumerate([1 / 10, 0.15, 0.15]):
        take_step(state, loss, settings)
        assert state.optimizer.param_groups[0]["lr"] == pytest.approx(settings.lr * (number + 1) / 3)
        for name, weight in state.model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * weight
        torch.testing.assert_close(state.ema, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_the_gradient_is_clipped_before_the_optimiser_sees_it(clip: float, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, clip=clip)
    state, norms = start_small("diffusion", settings, tmp_path), []

    def norm(*_: object) -> None:
        norms.append(torch.cat([p.grad.flatten() for p in state.model.parameters() if p.grad is not None]).norm())

    state.optimizer.register_step_pre_hook(norm)
    whole = take_step(state, network_and_loss("diffusion")[1], settings)["grad_norm"].item()
    assert whole > 0.1
    assert norms[0].item() == pytest.approx(min(whole, clip), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("precision", "hardware", "expected"),
    [("bfloat16", True, torch.bfloat16), ("bfloat16", False, torch.float32), ("float32", True, torch.float32)],
)
def test_matrix_products_are_in_bfloat16_if_chosen_and_supported(
    kind: str, precision: str, hardware: bool, expected: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "has_bfloat16", lambda device: hardware)
    settings = dataclasses.replace(SETTINGS, precision=precision)
    state, types = start_small(kind, settings, tmp_path), []
    for module in (state.model.time_embed, state.model):
        module.register_forward_hook(lambda module, arguments, output: types.append(output.dtype))
    losses = take_step(state, network_and_loss(kind)[1], settings)
    assert types == [expected, torch.float32]
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}
    assert torch.isfinite(losses["loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_with_dropout_ends_with_the_same_weights(kind: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, images=6 * 8, warmup=24, decay=0.5)
    _, loss = network_and_loss(kind)

    def weights_after(folder: Path, stops: list[int]) -> dict[str, Tensor]:
        folder.mkdir()
        for stop in stops:
            state = start_small(kind, settings, folder, dropout=0.3)
            for _ in range(stop - state.step):
                take_step(state, loss, settings)
                torch.rand(1)  # the state of torch's global generator must not matter
            state.save(folder / "state.pt")
        return {**state.ema, **{f"raw {name}": value for name, value in state.model.state_dict().items()}}

    straight, resumed = weights_after(tmp_path / "a", [6]), weights_after(tmp_path / "b", [3, 6])
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_step_leaves_the_global_random_numbers_alone(tmp_path: Path) -> None:
    state = start_small("classifier", SETTINGS, tmp_path, dropout=0.3)
    _, loss = network_and_loss("classifier")
    before = torch.random.get_rng_state()
    take_step(state, loss, SETTINGS)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_leaves_a_checkpoint_of_it(number: signal.Signals, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, images=400)
    calls, (_, inner) = [], network_and_loss("classifier")
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def interrupted(model: nn.Module, b: Batch) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(number)
        return inner(model, b)

    state = start_small("classifier", settings, tmp_path)
    with pytest.raises(KeyboardInterrupt) as raised:
        list(train(state, interrupted, training_set(), settings, tmp_path / "state.pt"))
    assert raised.value.args == (number,)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == len(calls) == 4
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_reports_are_means_of_the_steps_since_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REPORT_EVERY_S", 0.0)
    state, (_, loss) = start_small("classifier", SETTINGS, tmp_path), network_and_loss("classifier")
    each = list(train(state, loss, training_set(), SETTINGS, tmp_path / "state.pt"))
    monkeypatch.setattr(loop, "REPORT_EVERY_S", 1e9)
    (whole,) = train(
        start_small("classifier", SETTINGS, tmp_path / "b"), loss, training_set(), SETTINGS, tmp_path / "b.pt"
    )
    assert [(report.step, report.saved) for report in each] == [(1, False), (2, False), (3, True)]
    assert whole.means["loss"] == pytest.approx(np.mean([report.means["loss"] for report in each]))
    assert whole.means.keys() == {"loss", "cross_entropy", "entropy", "accuracy", "grad_norm"}


@pytest.mark.parametrize("where", ["loss", "weights"])
def test_divergence_is_reported_before_a_checkpoint_is_written(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN loss in step 2, or weights that an infinite rate ruins in the last step, whose loss is still finite."""
    state, calls, (_, inner) = start_small("classifier", SETTINGS, tmp_path), [0], network_and_loss("classifier")
    state.save(tmp_path / "state.pt")
    before = (tmp_path / "state.pt").read_bytes()

    def loss(model: nn.Module, b: Batch) -> dict[str, Tensor]:
        calls[0] += 1
        losses = inner(model, b)
        return losses | {"loss": losses["loss"] * (math.nan if where == "loss" and calls[0] == 2 else 1)}

    rates = {"loss": [0.01] * 3, "weights": [0.01, 0.01, math.inf]}[where]
    monkeypatch.setattr(TrainSettings, "lr_at", lambda self, step: rates[step])
    message = {"loss": r"at step 2 \(loss nan", "weights": r"weights are not finite at step 3 \(loss \d"}[where]
    with pytest.raises(DivergedError, match=message):
        list(train(state, loss, training_set(), SETTINGS, tmp_path / "state.pt"))
    assert (tmp_path / "state.pt").read_bytes() == before


def test_every_epoch_sees_every_image_once_in_a_new_order() -> None:
    settings = TrainSettings(images=42, batch=7, seed=5)
    rows = np.concatenate([batch_rows(training_set(21), step, settings) for step in range(6)])
    first, second = rows[:21], rows[21:]
    assert sorted(first) == sorted(second) == list(range(21))
    assert first.tolist() != second.tolist()


def test_learning_rate_warms_up_stays_and_decays() -> None:
    settings = TrainSettings(images=1000, batch=10, lr=1.0, warmup=100, decay=0.2)
    assert [settings.lr_at(k) for k in (0, 9, 50, 90, 99)] == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.05])


def test_batches_are_scaled_for_the_model_and_reproducible() -> None:
    one, two = (make_batch(training_set(), 3, SETTINGS, CPU) for _ in range(2))
    assert torch.equal(one.x_0, two.x_0) and torch.equal(one.y, two.y)
    rows = batch_rows(training_set(), 3, SETTINGS)
    assert torch.equal(((one.x_0 + 1) * 127.5).round().byte(), torch.from_numpy(images().images[rows]))
    assert torch.equal(one.y, torch.from_numpy(images().labels[rows]))
    assert torch.equal(one.draw(torch.randn, 3), two.draw(torch.randn, 3))


def test_each_step_and_seed_has_its_own_random_numbers() -> None:
    cases = [(0, 0), (0, 1), (1, 0), (MAX_SEED, 0), (MAX_SEED, 2**32 - 1)]
    draws = {
        tuple(make_batch(training_set(), step, dataclasses.replace(SETTINGS, seed=seed), CPU).draw(torch.rand).tolist())
        for seed, step in cases
    }
    assert len(draws) == len(cases)
