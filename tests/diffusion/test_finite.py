"""Values that are not finite are found in every method, wherever they occur, even if clipping hides them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from rarefy.device import find_compiler
from rarefy.diffusion.finite import check_finite, image_sums
from rarefy.diffusion.sampler import Chain, sample
from rarefy.diffusion.schedule import schedule_of
from rarefy.errors import NonFiniteError
from rarefy.execution import load_prepared
from rarefy.guidance.base import ScoreTerm, StepState
from rarefy.guidance.terms import ClassifierGuidance, SelfGuided
from rarefy.models.folder import find_model
from rarefy.models.load import Models

METHODS = ("ancestral", "ddim", "dpm-solver++")
Y, SEEDS, STEPS = [3, 7], [11, 22], 4


@cache
def models(precision: str = "exact", compile: str = "off") -> Models:
    places = None, None, (None, None), torch.device("cpu")
    return load_prepared(find_model("fashion-mnist-28"), *places, precision, compile)


def draw(networks: Models, method: str = "ddim", *terms: ScoreTerm | ClassifierGuidance | SelfGuided) -> None:
    chain = Chain(schedule_of(networks.preset, f"ddim{STEPS}"), method, terms=terms)
    for _ in sample(networks, torch.tensor(Y), SEEDS, chain):
        pass


def spoilt(network: nn.Module, step: int, row: int, value: float) -> Callable[[], None]:
    """Let one number of the network's output be ``value`` at call ``step``. Returns what ends that."""
    calls = []

    def spoil(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        calls.append(module)
        output = output.clone()
        if len(calls) == step:
            output[row, 0] = value
        return output

    return network.register_forward_hook(spoil).remove


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", [1, 3, STEPS])
def test_the_error_names_class_seed_and_step(step: int, method: str, value: float) -> None:
    """An infinite eps is clipped to a black or white pred_xstart, which is finite."""
    end = spoilt(models().unet, step, 1, value)
    try:
        with pytest.raises(NonFiniteError, match=rf"class 7 with seed 22 .* from step {step} of {STEPS} on"):
            draw(models(), method)
    finally:
        end()


@pytest.mark.parametrize(("precision", "compile"), [("exact", "auto"), ("fast", "auto"), ("fast", "off")])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_wrong_weight_is_found_in_any_layer(value: float, precision: str, compile: str) -> None:
    """Sick memory may change a weight after it was loaded."""
    if compile == "auto" and find_compiler() is None:
        pytest.skip("needs a C++ compiler")
    networks = models(precision, compile)
    names = dict(networks.unet.named_parameters())
    for parameter in [names[name] for name in [*list(names)[::12], "out.2.weight", "out.2.bias"]]:
        place = (0,) * parameter.ndim
        before = parameter.data[place].clone()
        parameter.data[place] = value
        try:
            with pytest.raises(NonFiniteError):
                draw(networks)
        finally:
            parameter.data[place] = before


class Spoilt(ScoreTerm):
    """Guidance that is infinite in one pixel of the second image, at the second step."""

    def gradient(self, state: StepState) -> Tensor:
        gradient = torch.zeros_like(state.x_t)
        gradient[1, 0, 3, 2] = math.inf if state.step == STEPS - 2 else 0.0
        return gradient


@pytest.mark.parametrize("method", METHODS)
def test_guidance_that_is_not_finite_is_found(method: str) -> None:
    with pytest.raises(NonFiniteError, match=rf"class 7 with seed 22 .* from step 2 of {STEPS} on"):
        draw(models(), method, Spoilt())


@pytest.mark.parametrize("term", [ClassifierGuidance(entropy_scaling=True), ClassifierGuidance(), SelfGuided()])
@pytest.mark.parametrize("compile", ["auto", "off"])
def test_a_classifier_with_a_wrong_weight_is_found(compile: str, term: ClassifierGuidance | SelfGuided) -> None:
    networks = models("exact", compile)
    assert networks.classifier is not None
    weight = next(p for name, p in networks.classifier.named_parameters() if "in_layers.2.weight" in name)
    before = weight.data[0, 0, 0, 0].clone()
    weight.data[0, 0, 0, 0] = math.nan
    try:
        with pytest.raises(NonFiniteError):
            draw(networks, "ancestral", term)
    finally:
        weight.data[0, 0, 0, 0] = before


def test_infinities_of_both_signs_do_not_cancel() -> None:
    x = torch.zeros(2, 1, 2, 2)
    x[0, 0, 0] = torch.tensor([math.inf, -math.inf])
    with pytest.raises(NonFiniteError, match=r"class 5 with seed 8 .* step 2 of 2"):
        check_finite([(image_sums(torch.ones_like(x)),), (image_sums(x),)], torch.tensor([5, 6]), [8, 9])
    check_finite([(image_sums(torch.full_like(x, 1e30)),)], torch.tensor([5, 6]), [8, 9])
