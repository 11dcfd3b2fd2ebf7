"""The reference implementation's numbers. ``pytest tests/test_golden.py --golden DIR`` checks another folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from goldens import config, fill, read, relative_error
from rarefy.diffusion.prediction import denoiser
from rarefy.diffusion.sampler import Chain, reverse_chain
from rarefy.diffusion.schedule import make_schedule
from rarefy.guidance.base import Networks, Term, entropy, target_log_prob
from rarefy.guidance.terms import ClassifierGuidance
from rarefy.models.adm import Classifier, UNet
from rarefy.models.folder import ModelFolder

NETWORK_TOLERANCE = 1e-4
TRACE_TOLERANCE = 1e-3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("--golden"))
    kinds = {file: json.loads(file.read_text()).get("kind") for file in sorted(folder.glob("*.json"))}
    assert set(kinds.values()) & {"unet", "classifier", "sampler_trace"}, f"no golden file in {folder}"
    for kind in ("unet", "classifier", "sampler_trace"):
        if kind in metafunc.fixturenames:
            files = [file for file, of_file in kinds.items() if of_file == kind]
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
    """The U-Net may be unconditional and the classifier null; then the trace has no scores and may have no classes."""
    golden, arrays = read(sampler_trace)
    unet, x = fill(UNet(config(golden["unet"]))), arrays["x_T"]
    classifier = fill(Classifier(config(golden["classifier"]))) if golden.get("classifier") else None
    terms: list[Term] = []
    if classifier is not None:
        terms = [ClassifierGuidance(scale=golden["classifier_scale"], entropy_scaling=golden["entropy_scaling"])]
    schedule = make_schedule(golden["schedule"], 1000, golden["timestep_respacing"])
    assert schedule.timesteps.tolist() == arrays["timesteps"].tolist()
    chain = Chain(schedule, "ddim" if golden["ddim"] else "ancestral", golden["eta"], terms)
    y = arrays.get("y", torch.zeros(len(x), dtype=torch.int64))
    denoise = denoiser(unet, ModelFolder("golden", "", unet.config, None, golden["schedule"], 1.0))
    states = reverse_chain(Networks(denoise, classifier), chain, x, y, lambda step: arrays["noise"][step])
    for k, state in enumerate(states):
        expected = {"pred_xstart": state.pred_xstart, "sample": state.x}
        if classifier is not None:
            log_probs = classifier(x, torch.full((len(x),), float(state.t))).log_softmax(-1)
            expected |= {"entropy": entropy(log_probs), "confidence": target_log_prob(log_probs, y).exp()}
        for name in expected.keys() & arrays.keys():
            assert relative_error(expected[name], arrays[name][k]) < TRACE_TOLERANCE, (k, name)
        x = state.x
    assert k + 1 == len(arrays["sample"])


TINY = {"image_size": 8, "in_channels": 1, "model_channels": 32, "out_channels": 2, "num_res_blocks": 1,
        "attention_resolutions": [2], "channel_mult": [1, 2], "num_head_channels": 32}  # fmt: skip


def write_plain_trace(path: Path, num_classes: int | None, classifier: bool) -> dict[str, Tensor]:
    """A golden trace without guidance: ancestral steps written out here, with the classifier's scale at 0 if any."""
    torch.manual_seed(0)
    shape, y, s = {**TINY, "num_classes": num_classes}, torch.tensor([2, 0]), make_schedule("cosine", 1000, "3")
    unet, x = fill(UNet(config(shape))), torch.randn(2, 1, 8, 8)
    arrays = {"x_T": x, "noise": torch.randn(3, *x.shape), "timesteps": s.timesteps}
    arrays |= {"y": y} if classifier or num_classes else {}
    states = []
    for z, step in zip(arrays["noise"], (2, 1, 0), strict=True):
        t, abar = torch.full((2,), float(s.timesteps[step])), s.alphas_cumprod[step]
        eps, v = unet(x, t, y if num_classes else None).split(1, dim=1)
        pred = ((x - (1 - abar).sqrt() * eps) / abar.sqrt()).clamp(-1, 1)
        mean = s.posterior_mean_coef_xstart[step] * pred + s.posterior_mean_coef_xt[step] * x
        low, high = s.posterior_log_variance[step], s.betas[step].log()
        x = (mean + (step > 0) * torch.exp(0.5 * (low + (v + 1) / 2 * (high - low))) * z).float()
        states.append((x, pred.float()))
    arrays["sample"], arrays["pred_xstart"] = (torch.stack(column) for column in zip(*states, strict=True))
    np.savez(path.with_suffix(".npz"), **{name: array.numpy() for name, array in arrays.items()})
    options = {"schedule": "cosine", "timestep_respacing": "3", "ddim": False, "eta": 0.0, "entropy_scaling": False}
    networks = {"unet": shape, "classifier": {**TINY, "out_channels": 3} if classifier else None}
    path.write_text(json.dumps({"kind": "sampler_trace", "classifier_scale": 0.0, **networks, **options}))
    return arrays


@pytest.mark.parametrize("num_classes", [3, None], ids=["conditional", "unconditional"])
@pytest.mark.parametrize("with_classifier", [False, True], ids=["no classifier", "scale 0"])
def test_traces_without_guidance_or_classes(num_classes: int | None, with_classifier: bool, tmp_path: Path) -> None:
    arrays = write_plain_trace(tmp_path / "trace.json", num_classes, with_classifier)
    test_trace(tmp_path / "trace.json")
    arrays["sample"][2] += 0.01
    np.savez(tmp_path / "trace.npz", **{name: array.numpy() for name, array in arrays.items()})
    with pytest.raises(AssertionError, match="sample"):
        test_trace(tmp_path / "trace.json")
