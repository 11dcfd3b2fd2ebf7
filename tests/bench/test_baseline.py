"""The stand-in that benchmarks/ compares with gives the reference's numbers too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.baseline import BaselineStep, classifier_forward, unet_forward
from goldens import GOLDEN, config, files, fill, read, relative_error
from rarefy.diffusion.schedule import make_schedule
from rarefy.models.adm import Classifier, UNet


@pytest.mark.parametrize("file", files("unet"), ids=lambda file: file.stem)
def test_unet(file: Path) -> None:
    golden, arrays = read(file)
    network = fill(UNet(config(golden["config"]))).requires_grad_()
    assert isinstance(network, UNet)
    output = unet_forward(network, arrays["x"], arrays["t"], arrays.get("y"))
    assert relative_error(output.detach(), arrays["output"]) < 1e-4


@pytest.mark.parametrize("file", files("classifier"), ids=lambda file: file.stem)
def test_classifier_and_its_gradient(file: Path) -> None:
    golden, arrays = read(file)
    network = fill(Classifier(config(golden["config"]))).requires_grad_()
    assert isinstance(network, Classifier)
    x = arrays["x"].requires_grad_()
    logits = classifier_forward(network, x, arrays["t"])
    log_prob = logits.log_softmax(-1).gather(1, arrays["y"][:, None]).sum()
    assert relative_error(logits.detach(), arrays["logits"]) < 1e-4
    assert relative_error(torch.autograd.grad(log_prob, x)[0], arrays["grad_log_prob"]) < 1e-4


def test_guided_ancestral_trace() -> None:
    golden, arrays = read(GOLDEN / "trace_ddpm_guided.json")
    unet, classifier = fill(UNet(config(golden["unet"]))), fill(Classifier(config(golden["classifier"])))
    assert isinstance(unet, UNet) and isinstance(classifier, Classifier)
    unet.requires_grad_()
    classifier.requires_grad_()
    schedule = make_schedule(golden["schedule"], 1000, golden["timestep_respacing"])
    step, x = BaselineStep(unet, classifier, schedule, golden["classifier_scale"]), arrays["x_T"]
    for number, k in enumerate(reversed(range(len(schedule)))):
        x = step(x, k, arrays["y"], arrays["noise"][number])
        assert relative_error(x, arrays["sample"][number]) < 1e-3
