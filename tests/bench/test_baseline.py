"""The benchmarks' peer computes what the reference computes: its goldens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.baseline import baseline
from goldens import GOLDEN, config, files, fill, read, relative_error
from rarefy.diffusion.sampler import Chain, reverse_chain
from rarefy.diffusion.schedule import make_schedule
from rarefy.guidance.base import Networks
from rarefy.guidance.terms import ClassifierGuidance
from rarefy.models.adm import ADM, Classifier, UNet


def filled(kind: type[ADM], values: dict[str, Any]) -> ADM:
    network = fill(kind(config(values)))
    assert isinstance(network, ADM)
    return baseline(network)


@pytest.mark.parametrize("file", files("unet"), ids=lambda file: file.stem)
def test_unet(file: Path) -> None:
    golden, arrays = read(file)
    output = filled(UNet, golden["config"])(arrays["x"], arrays["t"], arrays.get("y"))
    assert relative_error(output.detach(), arrays["output"]) < 1e-4


@pytest.mark.parametrize("file", files("classifier"), ids=lambda file: file.stem)
def test_classifier_and_its_gradient(file: Path) -> None:
    golden, arrays = read(file)
    x = arrays["x"].requires_grad_()
    logits = filled(Classifier, golden["config"])(x, arrays["t"])
    log_prob = logits.log_softmax(-1).gather(1, arrays["y"][:, None]).sum()
    assert relative_error(logits.detach(), arrays["logits"]) < 1e-4
    assert relative_error(torch.autograd.grad(log_prob, x)[0], arrays["grad_log_prob"]) < 1e-4


def test_guided_ancestral_trace() -> None:
    golden, arrays = read(GOLDEN / "trace_ddpm_guided.json")
    networks = Networks(filled(UNet, golden["unet"]), filled(Classifier, golden["classifier"]))
    schedule = make_schedule(golden["schedule"], 1000, golden["timestep_respacing"])
    chain = Chain(schedule, terms=[ClassifierGuidance(scale=golden["classifier_scale"])])
    states = reverse_chain(networks, chain, arrays["x_T"], arrays["y"], lambda k: arrays["noise"][k])
    for number, state in enumerate(states):
        assert relative_error(state.x, arrays["sample"][number]) < 1e-3
