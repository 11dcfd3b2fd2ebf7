"""Traces of entropy and guidance norm: by hand on one chain, and as the whole file has them."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks.quality.traces import TraceSettings, Watched, trace, traces
from rarefy.diffusion.sampler import SamplerSettings, networks_of
from rarefy.guidance.base import Classify, StepState
from rarefy.guidance.guide import Guide
from rarefy.guidance.terms import ClassifierGuidance
from rarefy.models.folder import find_model
from rarefy.models.load import Models, load_models

SETTINGS = TraceSettings(images=4, batch=3, sampler=SamplerSettings("dpm-solver++", "logsnr4", 1.0), every=2)


@pytest.fixture(scope="module")
def pair() -> tuple[Models, Models]:
    def load(name: str) -> Models:
        return load_models(find_model(name), None, None, (None, None), torch.device("cpu"))

    return load("fashion-mnist-28"), load("fashion-mnist-28-ect")


def linear(weights: torch.Tensor) -> Classify:
    return lambda x, t: x.flatten(1) @ weights


def test_watched_keeps_entropy_and_the_norm_of_the_whole_gradient(pair: tuple[Models, Models]) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(4, 3, generator=generator)
    x_t, y = torch.randn(2, 1, 2, 2, generator=generator), torch.tensor([0, 2])
    watched = Watched(linear(weights), {"flat": linear(torch.zeros(4, 3))})
    term = ClassifierGuidance(scale=2.0, entropy_scaling=True)
    state = StepState(0, 10, 0.9, x_t, y, x_t, x_t)
    networks = networks_of(pair[0], [0, 1])
    gradient = Guide((term,), type(networks)(networks.denoise, watched))(state)
    assert gradient is not None
    # grad log p_y = w_y - sum_k p_k w_k, times 2 log K / H
    probs = (x_t.flatten(1) @ weights).softmax(1)
    nats = -(probs * probs.log()).sum(1)
    by_hand = (weights.T[y] - probs @ weights.T) * (2 * math.log(3) / nats)[:, None]
    assert watched.norms[0].tolist() == pytest.approx(by_hand.norm(dim=1).tolist(), rel=1e-5)
    assert watched.entropies["own"][0].tolist() == pytest.approx(nats.tolist(), rel=1e-5)
    assert watched.entropies["flat"][0].tolist() == pytest.approx([math.log(3)] * 2)


def test_traces_are_json_with_a_value_a_step_in_ascending_time(pair: tuple[Models, Models]) -> None:
    found = json.loads(json.dumps(traces({"conditional": pair}, SETTINGS)))
    chain, noised = found["chains"]["conditional"], found["noised"]
    assert len(chain["t"]) == 4 and chain["t"] == sorted(chain["t"]) and noised["t"] == chain["t"][::2]
    assert set(chain["gradient"]) == {"adm-g", "eds", "eds-ect"}
    curves = [*chain["entropy"].values(), *chain["gradient"].values(), *noised["entropy"].values()]
    assert [len(curve["mean"]) for curve in curves] == [4] * 5 + [2] * 2
    for curve in curves:
        assert all(low <= high for low, high in zip(curve["low"], curve["high"], strict=True))
    for entropy in (chain["entropy"], noised["entropy"]):
        for curve in entropy.values():
            assert math.log(10) >= curve["mean"][-1] > curve["mean"][0] >= 0, "noise hides the class"


def test_chains_do_not_depend_on_the_batches_and_eds_adds_its_factor(pair: tuple[Models, Models]) -> None:
    whole = trace(*pair, TraceSettings(images=4, batch=4, sampler=SETTINGS.sampler))
    parts = trace(*pair, SETTINGS)
    assert whole["gradient"]["eds"]["mean"] == pytest.approx(parts["gradient"]["eds"]["mean"], rel=1e-2)
    # At the first step all chains are at the same x_T, where log K / H is least 1.
    assert whole["gradient"]["eds"]["mean"][-1] >= whole["gradient"]["adm-g"]["mean"][-1]
    bounded = trace(*pair, TraceSettings(images=4, batch=4, sampler=SETTINGS.sampler, max_scale=1.0))
    assert bounded["gradient"]["eds"]["mean"] == pytest.approx(bounded["gradient"]["adm-g"]["mean"], rel=1e-5)
