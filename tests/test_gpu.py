"""Tests that need a GPU; skipped if there is none."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from test_golden import NETWORK_TOLERANCE
from torch import Tensor
from triton_errors import LARGE, silu_at_its_ends, worst_errors

from goldens import config, files, fill, read, relative_error
from rarefy.cli import main
from rarefy.diffusion.sampler import Chain, sample
from rarefy.diffusion.schedule import schedule_of
from rarefy.errors import NonFiniteError
from rarefy.execution import load_prepared, prepare, repeatable
from rarefy.fast.attention import attend
from rarefy.guidance.terms import ClassifierGuidance
from rarefy.models.adm import ADM, Classifier, UNet
from rarefy.models.folder import find_model

GPU = torch.device("cuda")
ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def as_in_a_run() -> Iterator[None]:
    """cuDNN's settings as in a run: by default it rounds float32 convolutions to 10 bits (TF32)."""
    with repeatable():
        yield


def arrays_of(file: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    golden, arrays = read(file)
    return golden, {name: array.to(GPU) for name, array in arrays.items()}


def log_prob_gradient(network: ADM, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    logits = network(x, t)
    return logits.detach(), torch.autograd.grad(logits.log_softmax(-1).gather(1, y[:, None]).sum(), x)[0]


@pytest.mark.parametrize("compile", ["auto", "off"])
@pytest.mark.parametrize("file", files("unet"), ids=lambda file: file.stem)
def test_unet_gives_the_references_numbers(file: Path, compile: str) -> None:
    golden, arrays = arrays_of(file)
    network = fill(UNet(config(golden["config"])))
    x, t, y = arrays["x"], arrays["t"], arrays.get("y")
    prepare(network, GPU, "exact", compile, len(x))  # type: ignore[type-var]
    with torch.no_grad():
        for _ in range(2):
            assert relative_error(network(x, t, y), arrays["output"]) < NETWORK_TOLERANCE
        assert torch.equal(network(x, t, y), type(network).forward(network, x, t, y))  # recorded or not


@pytest.mark.parametrize("compile", ["auto", "off"])
@pytest.mark.parametrize("file", files("classifier"), ids=lambda file: file.stem)
def test_classifier_and_its_gradient_give_the_references_numbers(file: Path, compile: str) -> None:
    golden, arrays = arrays_of(file)
    network = fill(Classifier(config(golden["config"])))
    x, t, y = arrays["x"], arrays["t"], arrays["y"]
    prepare(network, GPU, "exact", compile, len(x))  # type: ignore[type-var]
    logits, gradient = log_prob_gradient(network, x, t, y)
    assert relative_error(logits, arrays["logits"]) < NETWORK_TOLERANCE
    assert relative_error(gradient, arrays["grad_log_prob"]) < NETWORK_TOLERANCE
    # Another call in between, and another batch size, which runs eagerly.
    other = log_prob_gradient(network, x.flip(0), t.flip(0), y.flip(0))[1].flip(0)
    assert relative_error(other, arrays["grad_log_prob"]) < NETWORK_TOLERANCE
    assert relative_error(log_prob_gradient(network, x[:1], t[:1], y[:1])[1], arrays["grad_log_prob"][:1]) < 1e-4
    network.__dict__.pop("forward", None)
    assert torch.equal(log_prob_gradient(network, x, t, y)[1], gradient)


def test_normalisation_and_its_gradients_are_torchs() -> None:
    assert max(worst_errors("cuda", LARGE)) < 1
    torch.testing.assert_close(*silu_at_its_ends("cuda"), rtol=1e-6, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(4, 6, 1024, 64), (8, 3, 49, 32)], ids=str)
def test_attentions_gradient_is_the_same_each_time(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(shape, device=GPU, dtype=dtype, requires_grad=True) for _ in range(3))
    grad = torch.randn(shape, device=GPU, dtype=dtype)
    first, *others = (torch.autograd.grad(attend(q, k, v), (q, k, v), grad) for _ in range(8))
    for gradients in others:
        assert all(torch.equal(a, b) for a, b in zip(first, gradients, strict=True))
    exact = tuple(part.detach().double().requires_grad_() for part in (q, k, v))
    weights = (exact[0] * shape[-1] ** -0.5 @ exact[1].transpose(-2, -1)).softmax(dim=-1)
    expected = torch.autograd.grad(weights @ exact[2], exact, grad.double())
    for actual, other in zip(first, expected, strict=True):
        assert relative_error(actual.double(), other) < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_a_networks_gradient_is_the_same_each_time(precision: str) -> None:
    """With as many tokens as in ADM's classifiers."""
    golden, _ = arrays_of(files("classifier")[0])
    shape = config({**golden["config"], "image_size": 64, "attention_resolutions": [2, 4]})  # type: ignore[dict-item]
    network = fill(Classifier(shape))
    assert isinstance(network, Classifier)
    x = torch.randn(8, shape.in_channels, 64, 64, device=GPU)
    t, y = torch.full((8,), 300.0, device=GPU), torch.zeros(8, dtype=torch.int64, device=GPU)
    for compile in ("auto", "off"):
        prepare(network, GPU, precision, compile, 8)
        first, *others = (log_prob_gradient(network, x, t, y)[1] for _ in range(4))
        assert first.norm() > 0 and all(torch.equal(first, other) for other in others)


def images(out: Path) -> dict[str, str]:
    """Hashes of the PNGs, by key."""
    rows = pq.read_table(out / "metadata", columns=["key", "image_sha256"]).to_pylist()
    return {row["key"]: row["image_sha256"] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_a_run_on_a_gpu_gives_the_same_images_each_time(precision: str, tmp_path: Path) -> None:
    text = (ROOT / "manifests" / "smoke.toml").read_text()
    manifest = tmp_path / "smoke.toml"
    manifest.write_text(text.replace("[sampler]", f'[sampler]\nprecision = "{precision}"'))
    for name, actors in (("one", 1), ("two", 2)):
        share = ["--actors", str(actors), "--gpus-per-actor", str(1 / actors)]
        assert main(["generate", str(manifest), "--out", str(tmp_path / name), *share]) == 0
    hashes = images(tmp_path / "one")
    assert len(hashes) == 20 and hashes == images(tmp_path / "two")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("compile", ["auto", "off", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_one_wrong_weight_is_found_in_any_layer(precision: str, compile: str, value: float) -> None:
    model, y, seeds = find_model("fashion-mnist-28"), torch.tensor([3, 7], device=GPU), [11, 22]
    models = load_prepared(model, None, None, (None, None), GPU, precision, compile, 2)
    chain = Chain(schedule_of(model, "4"), terms=(ClassifierGuidance(entropy_scaling=True),))
    assert models.classifier is not None
    for _ in sample(models, y, seeds, chain):
        pass
    for network in (models.unet, models.classifier):
        names = dict(network.named_parameters())
        for parameter in [names[name] for name in [*list(names)[::12], list(names)[-2]] if "label" not in name]:
            place = (0,) * parameter.ndim
            before = parameter.data[place].clone()
            parameter.data[place] = value
            with pytest.raises(NonFiniteError):
                for _ in sample(models, y, seeds, chain):
                    pass
            parameter.data[place] = before


@pytest.mark.slow
def test_a_gpu_by_its_name_without_a_home_or_a_cache(tmp_path: Path) -> None:
    """CUDA_VISIBLE_DEVICES may have a UUID, and Triton must not need the home folder."""
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"UUID: (GPU-[0-9a-f-]+)", listed)
    assert found is not None
    nowhere = {"HOME": "/dev/null/none", "XDG_CACHE_HOME": "/dev/null", "CUDA_VISIBLE_DEVICES": found[1]}
    command = [sys.executable, "-m", "rarefy", "generate", str(ROOT / "manifests" / "smoke.toml")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--gpus-per-actor", "0.5", "--actors", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "pipeline"), **nowhere},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(images(tmp_path / "out")) == 20


@pytest.mark.slow
def test_bench_measures_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--device", "cuda", "--precision", "fast", "--batch", "8,16", "--growth", "--actors", "1", "--json"]
    assert main(["bench", str(ROOT / "manifests" / "smoke.toml"), *options]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [point["batch"] for point in result["batches"]] == [8, 16]
    assert result["dtype"] == "bfloat16" and all(point["images_per_second"] > 0 for point in result["batches"])
