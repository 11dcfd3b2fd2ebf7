"""Entropy and guidance norm along a short chain, compared with the formulas at its first step."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.quality import traces
from rarefy.diffusion.sampler import image_noise
from rarefy.diffusion.settings import SamplerSettings
from rarefy.execution import load_prepared
from rarefy.models.folder import find_model
from rarefy.plan import sample_seed

SHORT = SamplerSettings("dpm-solver++", "logsnr3", 1.0)


def test_the_first_step_matches_the_formulas() -> None:
    plain, ect = (
        load_prepared(find_model(name), None, None, (None, None), torch.device("cpu"))
        for name in ("fashion-mnist-28", "fashion-mnist-28-ect")
    )
    adm_g, eds = (traces.watch(plain, ect, term, 4, SHORT) for term in (traces.ADM_G, traces.EDS))
    t = torch.full((4,), float(SHORT.chain(plain.preset).schedule.timesteps[-1]))
    x_t = image_noise(plain, [sample_seed(0, y, 0, 0) for y in range(4)])(-1).requires_grad_()
    log_p, other = (models.classifier(x_t, t).log_softmax(1) for models in (plain, ect))
    entropy, other_entropy = (-(answer.exp() * answer).sum(1).detach() for answer in (log_p, other))
    (gradient,) = torch.autograd.grad(log_p[range(4), range(4)].sum(), x_t)
    norm = gradient.flatten(1).norm(dim=1)
    assert adm_g["own"][-1] == pytest.approx(float(entropy.mean()), rel=1e-4)
    assert adm_g["other"][-1] == pytest.approx(float(other_entropy.mean()), rel=1e-4)
    assert adm_g["norm"][-1] == pytest.approx(float(norm.mean()), rel=1e-3)
    assert eds["norm"][-1] == pytest.approx(float((norm * math.log(10) / entropy).mean()), rel=1e-3)
    assert adm_g["own"][0] < adm_g["own"][-1], "noise hides the class"


def test_the_curves_are_named_as_in_the_results_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "MODELS", {"conditional": "fashion-mnist-28"})
    chain = traces.traces(2, "exact", SHORT)["chains"]["conditional"]
    assert chain["t"] == sorted(chain["t"]) and len(chain["t"]) == 3
    assert chain["entropy"].keys() == {"plain", "ect"} and chain["gradient"].keys() == {"adm-g", "eds", "eds-ect"}
    curves = [curve["mean"] for part in ("entropy", "gradient") for curve in chain[part].values()]
    assert all(len(curve) == 3 and all(map(math.isfinite, curve)) for curve in curves)
    assert len({tuple(curve) for curve in curves}) == 5
