"""What is gained by adding generated images to real ones, on planted data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from rarefy.audit.utility import measure as utility_measure
from rarefy.audit.utility import network
from rarefy.audit.utility.measure import Answer, Question, measure_utility
from rarefy.audit.utility.network import train_network
from rarefy.audit.utility.outcome import Outcome
from rarefy.audit.utility.probe import choose_penalty, fit_probe, fit_standardizer
from rarefy.audit.utility.trainings import Examples, Mix, capped, plan_mixes

NAMES, DIM = ("a", "b", "c"), 12
CENTRES = np.random.default_rng(9).normal(size=(3, DIM)).astype(np.float32)


def examples(labels: NDArray[np.int64], seed: int) -> Examples:
    """Gaussian features around the centre of each class; the image's first pixel tells the class too."""
    generator = np.random.default_rng(seed)
    features = CENTRES[labels] + generator.normal(size=(len(labels), DIM)).astype(np.float32)
    images = generator.integers(0, 60, (len(labels), 1, 8, 8)).astype(np.uint8)
    images[:, 0, :4] += (60 * labels).astype(np.uint8)[:, None, None]
    return Examples(images, features, labels)


def draw(rows: int, seed: int, classes: int = 3) -> Examples:
    return examples(np.random.default_rng(seed).integers(0, classes, rows), seed)


def ask(real: Examples, generated: Examples, device: str | None = None) -> Answer:
    test = draw(1500, 99)
    question = Question(real, generated, test, np.arange(1500) % 5 == 0, "planted", NAMES)
    return measure_utility(question, device, lambda stage, done, total: None)


def interval(answer: Answer, kind: str) -> list[float]:
    found = answer.gains[kind].interval
    assert found is not None
    return found


def test_images_that_carry_a_missing_class_raise_the_accuracy() -> None:
    real = draw(300, 0, classes=2)
    answer = ask(real, examples(np.full(150, 2), 1))
    low, high = interval(answer, "utility")
    assert 0.2 < low < answer.gains["utility"].value < high < 0.5
    assert interval(answer, "tail_utility")[0] > 0.1
    assert answer.class_accuracies[2] == 0.0
    assert answer.class_gains[2].value > 0.6
    low, high = answer.class_gains[2].interval or [0.0, 0.0]
    assert 0.3 < low < answer.class_gains[2].value < high
    assert answer.baselines == {}  # the real images have none of this class to add


def test_images_with_shuffled_labels_lower_it() -> None:
    generated = draw(600, 1)
    answer = ask(draw(200, 0), replace(generated, labels=np.random.default_rng(2).permutation(generated.labels)))
    assert interval(answer, "utility")[1] < -0.01


def test_copies_of_the_real_images_change_nothing() -> None:
    real = draw(300, 0)
    answer = ask(real, real)
    assert answer.gains["utility"].value == pytest.approx(0, abs=1e-3)
    low, high = interval(answer, "utility")
    assert low < 0 < high


def test_fresh_images_gain_what_as_many_real_ones_do() -> None:
    answer = ask(draw(400, 0), draw(150, 1))
    assert answer.counts == (150, 400, 150)
    gain, baseline = answer.gains["utility"].value, answer.baselines["utility"].value
    assert gain == pytest.approx(baseline, abs=0.02)


def test_the_table_has_every_training_and_says_what_the_count_allows() -> None:
    (table,) = ask(draw(200, 0), draw(120, 1)).tables
    assert [(row.data, row.ratio, row.images) for row in table.trainings] == [
        ("real", None, 200), ("generated", None, 120), ("both", 0.25, 250), ("both", 0.5, 300), ("both", 0.6, 320),
    ]  # fmt: skip
    assert table.source == "planted; 120 generated images are too few for 1 or 2 per real one"
    assert (table.classifier, table.train_count, table.test_count, table.seeds) == ("probe", 200, 1500, 8)
    for row in table.trainings:
        assert row.accuracy_interval[0] < row.accuracy < row.accuracy_interval[1]
        assert set(row.per_class) == set(row.per_class_interval) == set(NAMES)
        for name, (low, high) in row.per_class_interval.items():
            assert low <= row.per_class[name] <= high
    assert capped(100, 200) == ""


def test_less_real_data_are_the_real_images_without_as_many_per_class() -> None:
    real, generated = np.repeat([0, 1], [6, 4]), np.array([0, 0, 1])
    mixes = plan_mixes(real, generated)
    assert [(mix.data, mix.ratio) for mix in mixes[2:]] == [("both", 0.25), ("both", 0.3), ("less real", None)]
    assert np.bincount(real[mixes[-1].real]).tolist() == [4, 3]
    assert "less real" not in [mix.data for mix in plan_mixes(real, np.array([1, 1, 1]))]


def test_the_probe_is_scikit_learns() -> None:
    data, penalty = draw(300, 0), 0.03
    rows = fit_standardizer(data.features)(data.features)
    probe = fit_probe(rows, data.labels, 3, penalty)
    peer = LogisticRegression(C=1 / (penalty * len(rows)), tol=1e-8, max_iter=2000).fit(
        rows.astype(np.float64), data.labels
    )
    weights = probe.weights - probe.weights.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(weights[:-1].T, peer.coef_ - peer.coef_.mean(axis=0), atol=3e-3)


def test_the_axes_are_standardised_and_noise_is_left_out() -> None:
    features = draw(400, 0).features @ np.random.default_rng(0).normal(size=(DIM, 50)).astype(np.float32)
    rows = fit_standardizer(features)(features)
    assert rows.shape == (400, DIM)  # the other directions have no variance
    np.testing.assert_allclose(np.cov(rows, rowvar=False), np.eye(DIM), atol=2e-3)
    assert fit_standardizer(draw(30, 0).features)(features[:, :DIM]).shape[1] == 30 // 4


def test_the_penalty_is_strong_where_nothing_can_be_learned() -> None:
    data = draw(120, 0)
    rows, noise = fit_standardizer(data.features)(data.features), np.random.default_rng(1).integers(0, 3, 120)
    assert choose_penalty(rows, noise, 3) == 0.3 > choose_penalty(rows, data.labels, 3)


def test_the_spread_of_halves_is_that_of_new_draws() -> None:
    """Accuracies of which each half of the training images moves a share: a linear statistic."""
    generator, spreads, values = np.random.default_rng(0), [], []
    mix, everyone = Mix("real", None, np.arange(0), np.arange(0)), np.ones(1000, bool)
    for _ in range(300):
        images = generator.normal(0.5, 0.3, 40)  # what each training image adds to the accuracy
        halves = np.stack([images[generator.permutation(40)[:20]].mean().repeat(1000) for _ in range(8)])
        hits = np.full(1000, images.mean())
        spreads.append(Outcome(mix, hits, halves, halves=True).accuracy(everyone).error)  # type: ignore[arg-type]  # shares
        values.append(images.mean())
    assert np.sqrt(np.mean(np.square(spreads))) == pytest.approx(np.std(values), rel=0.1)


def test_the_network_learns_and_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "STEPS", 20)
    monkeypatch.setattr(utility_measure, "NETWORK_SEEDS", 2)
    probe, table = ask(draw(200, 0, classes=2), examples(np.full(48, 2), 1), "cpu").tables
    assert (probe.classifier, table.classifier, table.seeds) == ("probe", "network", 2)
    accuracy = {(row.data, row.ratio): row.accuracy for row in table.trainings}
    assert accuracy["both", 0.24] > accuracy["real", None] + 0.1
    data = draw(100, 5)
    twice = [train_network(data.images, data.labels, 3, 1, "cpu")(data.images) for _ in range(2)]
    np.testing.assert_array_equal(*twice)
