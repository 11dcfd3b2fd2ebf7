"""Numbers of the reference implementation. ``pytest tests/test_golden.py --golden DIR`` checks another folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from goldens import config, fill, read, relative_error
from rarefy.diffusion.sampler import Chain, reverse_chain
from rarefy.diffusion.schedule import make_schedule
from rarefy.guidance.base import Networks, entropy
from rarefy.guidance.terms import ClassifierGuidance
from rarefy.models.adm import Classifier, UNet

NETWORK_TOLERANCE = 1e-4
TRACE_TOLERANCE = 1e-3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("--golden"))
    kinds = {file: json.loads(file.read_text())["kind"] for file in sorted(folder.glob("*.json"))}
    assert set(kinds.values()) & {"unet", "classifier", "sampler_trace"}, f"no golden file in {folder}"
    for kind in ("unet", "classifier", "sampler_trace"):
        if kind in metafunc.fixturenames:
            files = [file for file, found in kinds.items() if found == kind]
            metafunc.parametrize(kind, files, ids=[file.stem for file in files])


def shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(entry.shape) for name, entry in network.state_dict().items()}


def test_unet(unet: Path) -> None:
    golden, arrays = read(unet)
    network = UNet(config(golden["config"]))
    assert shapes(network) == golden["state_dict"]
    output = fill(network)(arrays["x"], arrays["t"], arrays.get("y"))
    assert relative_error(output, arrays["output"]) < NETWORK_TOLERANCE


def test_classifier(classifier: Path) -> None:
    golden, arrays = read(classifier)
    network = Classifier(config(golden["config"]))
    assert shapes(network) == golden["state_dict"]
    x = arrays["x"].requires_grad_()
    logits = fill(network)(x, arrays["t"])
    log_prob = logits.log_softmax(-1).gather(1, arrays["y"][:, None]).sum()
    assert relative_error(logits.detach(), arrays["logits"]) < NETWORK_TOLERANCE
    assert relative_error(torch.autograd.grad(log_prob, x)[0], arrays["grad_log_prob"]) < NETWORK_TOLERANCE


def test_trace(sampler_trace: Path) -> None:
    golden, arrays = read(sampler_trace)
    unet, classifier = fill(UNet(config(golden["unet"]))), fill(Classifier(config(golden["classifier"])))
    schedule = make_schedule(golden["schedule"], 1000, golden["timestep_respacing"])
    assert schedule.timesteps.tolist() == arrays["timesteps"].tolist()
    term = ClassifierGuidance(scale=golden["classifier_scale"], entropy_scaling=golden["entropy_scaling"])
    chain = Chain(schedule, "ddim" if golden["ddim"] else "ancestral", golden["eta"], (term,))
    y, x = arrays["y"], arrays["x_T"]
    states = reverse_chain(Networks(unet, classifier), chain, x, y, lambda step: arrays["noise"][step])
    for k, state in enumerate(states):
        log_probs = classifier(x, torch.full((len(x),), float(state.t))).log_softmax(-1)
        confidence = log_probs.gather(1, y[:, None])[:, 0].exp()
        assert relative_error(entropy(log_probs), arrays["entropy"][k]) < TRACE_TOLERANCE
        assert relative_error(confidence, arrays["confidence"][k]) < TRACE_TOLERANCE
        assert relative_error(state.pred_xstart, arrays["pred_xstart"][k]) < TRACE_TOLERANCE
        assert relative_error(state.x, arrays["sample"][k]) < TRACE_TOLERANCE
        x = state.x
    assert k + 1 == len(arrays["sample"])
