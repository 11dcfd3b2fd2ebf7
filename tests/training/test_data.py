"""Batches: mirrored and shifted images, balanced classes, micro-batches, and pixels read ahead."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import CPU, SETTINGS, images, network_and_loss, start_small, take_step, training_set

from rarefy.images import LabelledImages
from rarefy.training.data import TrainingSet, batch_rows, make_batch, shifted
from rarefy.training.loader import Loader
from rarefy.training.settings import TrainSettings
from rarefy.training.state import recompute_activations


def test_half_of_the_images_are_mirrored_by_the_first_random_numbers_of_the_step() -> None:
    settings = TrainSettings(images=800, batch=400, flip=True)
    plain = make_batch(training_set(400), 1, dataclasses.replace(settings, flip=False), CPU)
    mirrored = plain.draw(torch.rand) < 0.5
    batch = make_batch(training_set(400), 1, settings, CPU)
    assert 160 < int(mirrored.sum()) < 240
    assert torch.equal(batch.x_0[mirrored], plain.x_0[mirrored].flip(-1))
    assert torch.equal(batch.x_0[~mirrored], plain.x_0[~mirrored])
    assert torch.equal(batch.y, plain.y)
    assert torch.equal(batch.draw(torch.randn, 2), plain.draw(torch.randn, 2))


def test_shifted_images_are_cut_out_of_their_reflections() -> None:
    x = torch.rand(9, 2, 6, 5)
    offsets = torch.tensor([[row, column] for row in range(3) for column in range(3)])
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    for image, (row, column) in enumerate(offsets.tolist()):
        expected = padded[image, :, row : row + 6, column : column + 5]
        assert np.array_equal(shifted(x, offsets, 1)[image].numpy(), expected)


def test_crop_shifts_by_every_offset_up_to_its_value() -> None:
    pixels = np.zeros((1, 1, 8, 8), np.uint8)
    pixels[0, 0, 4, 4] = 255
    data = TrainingSet.whole(LabelledImages(pixels, np.zeros(1, np.int64), ("a",)))
    batch = make_batch(data, 0, TrainSettings(images=500, batch=500, crop=2), CPU)
    places = {tuple(place) for place in (batch.x_0[:, 0] > 0).nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in range(2, 7) for column in range(2, 7)}


def long_tailed() -> TrainingSet:
    labels = np.repeat([0, 1, 2], [64, 16, 1])
    return TrainingSet.whole(LabelledImages(np.zeros((81, 1, 8, 8), np.uint8), labels, ("a", "b", "c")))


@pytest.mark.parametrize(("balance", "shares"), [(0.0, (64, 16, 1)), (0.5, (8, 4, 1)), (1.0, (1, 1, 1))])
def test_balance_draws_a_class_with_weight_n_to_the_power_of_one_minus_balance(
    balance: float, shares: tuple[int, ...]
) -> None:
    data, settings = long_tailed(), TrainSettings(images=10**6, batch=810, balance=balance)
    rows = np.concatenate([batch_rows(data, step, settings) for step in range(20)])
    counts = np.bincount(data.labels[rows]) / len(rows)
    assert counts == pytest.approx(np.array(shares) / sum(shares), abs=0.012)


def test_a_balanced_epoch_repeats_no_image_more_often_than_it_must() -> None:
    data, settings = long_tailed(), TrainSettings(images=10**6, batch=81, balance=1.0)
    for step in range(5):
        rows = batch_rows(data, step, settings)
        for class_id in (0, 1, 2):
            times = Counter(rows[data.labels[rows] == class_id].tolist()).values()
            members = int((data.labels == class_id).sum())
            total = sum(times)
            assert max(times) == -(-total // members)


def test_excluded_rows_are_never_drawn() -> None:
    kept = np.array([0, 3, 5, 9])
    data = dataclasses.replace(training_set(), rows=kept)
    drawn = np.concatenate([batch_rows(data, step, SETTINGS) for step in range(2)])
    assert Counter(drawn.tolist()) == dict.fromkeys(kept.tolist(), 4)
    assert data.sha256() == images().take(kept).sha256()


@pytest.mark.parametrize("kind", ["diffusion", "classifier"])
def test_micro_batches_change_a_step_by_rounding_only(kind: str, tmp_path: Path) -> None:
    steps = []
    for count in (1, 4):
        settings = dataclasses.replace(SETTINGS, accumulate=count, flip=True)
        state, loss = start_small(kind, settings, tmp_path), network_and_loss(kind)[1]
        state.optimizer.param_groups[0]["eps"] = 1e-3  # Adam would amplify the rounding of gradients that are zero
        steps.append((take_step(state, loss, settings), state.model.state_dict()))
    (whole, weights), (parts, again) = steps
    assert {k: v.item() for k, v in parts.items()} == pytest.approx({k: v.item() for k, v in whole.items()}, rel=1e-4)
    torch.testing.assert_close(again, weights, rtol=1e-4, atol=2e-6)


def test_micro_batches_cover_the_batch_with_its_own_random_numbers() -> None:
    whole = make_batch(training_set(), 0, SETTINGS, CPU)
    parts = [(part.x_0, part.draw(torch.randn, 3)) for part in whole.parts(4)]
    noise = whole.draw(torch.randn, 3)
    for number, (x_0, drawn) in enumerate(parts):
        assert torch.equal(x_0, whole.x_0[number::4])
        assert torch.equal(drawn, noise[number::4])


def test_recomputed_activations_give_the_same_gradients_and_are_not_kept() -> None:
    kept, gradients = [], []
    for recomputed in (False, True):
        network, loss = network_and_loss("diffusion", dropout=0.3)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
        if recomputed:
            recompute_activations(network)
        saved: list[int] = []
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=saved: (s.append(x.numel()), x)[1], lambda x: x):
            losses = loss(network.train(), make_batch(training_set(), 0, SETTINGS, CPU))
        losses["loss"].backward()
        kept.append(sum(saved))
        gradients.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert kept[1] < 0.5 * kept[0]


def test_pixels_read_ahead_give_the_same_batches(tmp_path: Path) -> None:
    source = images()
    np.save(tmp_path / "images.npy", source.images)
    mapped = dataclasses.replace(source, images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    settings = dataclasses.replace(SETTINGS, images=8 * 20)
    with Loader(TrainingSet.whole(mapped), settings, CPU) as loader:
        assert loader._pool is not None
        batches = list(loader.batches(3))
    assert len(batches) == 17
    for step, batch in enumerate(batches, start=3):
        expected = make_batch(training_set(), step, settings, CPU)
        assert torch.equal(batch.x_0, expected.x_0) and torch.equal(batch.y, expected.y)


def test_the_ema_halflife_is_in_images() -> None:
    settings = TrainSettings(images=1, batch=50, ema_halflife=500)
    assert settings.ema_decay**10 == pytest.approx(0.5)
