"""Scores compared with scipy and with values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from rarefy.generate.score import Scores, accepted, score_images
from rarefy.manifest import Accept, Bounds


def classify(x: Tensor, t: Tensor) -> Tensor:
    """Logits that are a fixed linear function of the pixels; only t = 0 is allowed."""
    assert bool((t == 0).all())
    weights = torch.linspace(-1, 1, 5 * 12).reshape(12, 5)
    return x.flatten(1) @ weights


def test_scores_are_those_of_scipy() -> None:
    images = torch.randint(0, 256, (7, 1, 3, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    scores = score_images(classify, images, y)
    logits = classify(images.double().float() / 127.5 - 1, torch.zeros(7)).numpy()
    probs = scipy.special.softmax(logits.astype(np.float64), axis=1)
    ordered = np.sort(probs, axis=1)
    np.testing.assert_array_equal(scores.predicted_id, probs.argmax(1))
    np.testing.assert_allclose(scores.confidence, probs[np.arange(7), y], rtol=1e-4)
    np.testing.assert_allclose(scores.entropy, scipy.stats.entropy(probs, axis=1), rtol=1e-4)
    np.testing.assert_allclose(scores.entropy_normalized, scipy.stats.entropy(probs, axis=1) / math.log(5), rtol=1e-4)
    np.testing.assert_allclose(scores.margin, ordered[:, -1] - ordered[:, -2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("logit", "entropy", "margin"), [(0.0, math.log(4), 0.0), (1e4, 0.0, 1.0)])
def test_extremes_stay_finite(logit: float, entropy: float, margin: float) -> None:
    logits = torch.tensor([[logit, 0.0, 0.0, 0.0]])
    scores = score_images(lambda x, t: logits, torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([0]))
    assert float(scores.entropy) == pytest.approx(entropy, abs=1e-6)
    assert float(scores.margin) == pytest.approx(margin, abs=1e-6)


def test_a_single_class_is_certain() -> None:
    scores = score_images(
        lambda x, t: torch.tensor([[3.0]]), torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([0])
    )
    of_image = scores.of_image(0)
    assert (of_image.predicted_id, of_image.confidence, of_image.margin) == (0, 1.0, 1.0)
    assert (of_image.entropy, of_image.entropy_normalized) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, True),
        (Accept(), True),
        (Accept(confidence=Bounds(max=0.5)), False),
        (Accept(confidence=Bounds(min=0.6, max=0.6)), True),
        (Accept(entropy=Bounds(min=1.5)), False),
        (Accept(entropy=Bounds(max=1.25)), True),
        (Accept(on_class=True), False),
    ],
)
def test_filter(accept: Accept | None, expected: bool) -> None:
    value = {"confidence": 0.6, "entropy": 1.25, "entropy_normalized": 0.5, "margin": 0.1}
    double = {name: torch.tensor([number], dtype=torch.float64) for name, number in value.items()}
    scores = Scores(predicted_id=torch.tensor([3]), **double)
    assert accepted(accept, scores, 0, class_id=2) is expected
