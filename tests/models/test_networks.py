"""Networks of other kinds than ADM: built by their import path, loaded, sampled, refused in one line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_model import refused

from rarefy.cli import main
from rarefy.diffusion.sampler import networks_of, sample
from rarefy.diffusion.settings import SamplerSettings
from rarefy.errors import ManifestError
from rarefy.guidance.terms import ClassifierGuidance
from rarefy.models.config import OtherNetwork
from rarefy.models.folder import ModelFolder
from rarefy.models.load import Models, load_models
from rarefy.models.networks import build_classifier, build_network, build_unet
from rarefy.shards.metadata import read_records
from rarefy.shards.store import Store

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model"
CODE = """
import torch
from torch import nn

class UNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, width, 1)

    def forward(self, x, t, y):
        return self.layer(x).mean(1, keepdim=True) * (1 + y)[:, None, None, None] + t[:, None, None, None] / 1000

class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3)

    def forward(self, x, t):
        return self.layer(x.flatten(1))

def build(width: int) -> nn.Module:
    return UNet(width)

def not_a_network() -> nn.Module:
    return 7

def without_annotation():
    raise AssertionError("this must not be called")

ran = []
def harmful(text: str) -> None:
    ran.append(text)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of an importable module with the code above."""
    name = f"own_networks_{os.getpid()}_{len(sys.modules)}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def models_of(module: str, folder: Path, kind: str = "build") -> Models:
    """A model of the module's networks with random weights, saved and loaded."""
    unet = OtherNetwork(f"{module}:{kind}", 4, 1, 1, 3, {"width": 2})
    head = OtherNetwork(f"{module}:Head", 4, 1, 3)
    torch.manual_seed(0)
    files = {}
    for role, spec in (("unet", unet), ("classifier", head)):
        save_file(build_network(spec, role, allow_plugins=True).state_dict(), folder / f"{role}.safetensors")
        files[role] = f"{role}.safetensors"
    model = ModelFolder("own", "", unet, head, "cosine", 1.0, 20, path=folder, files=files, allow_plugins=True)
    return load_models(model, None, None, (None, None), torch.device("cpu"))


@pytest.mark.parametrize("kind", ["build", "UNet"])
def test_a_function_or_a_class_builds_the_network(kind: str, module: str, tmp_path: Path) -> None:
    models = models_of(module, tmp_path, kind)
    chain = SamplerSettings("ddim", "ddim5").chain(models.preset, [ClassifierGuidance(scale=1.0)])
    *_, last = sample(models, torch.tensor([0, 2]), [1, 2], chain)
    assert last.x.shape == (2, 1, 4, 4) and last.x.isfinite().all()
    assert not any(parameter.requires_grad for parameter in models.unet.parameters())


def test_a_term_that_needs_features_is_refused_if_the_classifier_has_none(module: str, tmp_path: Path) -> None:
    networks = networks_of(models_of(module, tmp_path), [0])
    assert networks.features is not None
    with pytest.raises(ManifestError, match=r"a term calls features\(\), which this model's classifier does not have"):
        networks.features(torch.zeros(1, 1, 4, 4))


def test_a_classifier_with_features_is_used(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = models_of(module, tmp_path)
    assert models.classifier is not None
    monkeypatch.setattr(type(models.classifier), "features", lambda self, x: x.mean((2, 3)), raising=False)
    features = networks_of(models, [0]).features
    assert features is not None and features(torch.ones(1, 1, 4, 4)).tolist() == [[1.0]]


REFUSED = [
    ("no_such_module:build", {}, r"unet\.kind: 'no_such_module:build' is not importable here: ModuleNotFoundError"),
    ("{}:absent", {}, "is not importable here: AttributeError"),
    ("{}:build", {"depth": 3}, r"unet\.options: \{'depth': 3\} is not accepted by .*unexpected keyword argument"),
    ("{}:not_a_network", {}, "is not a function that returns an nn.Module; it returned 7"),
    ("{}:without_annotation", {}, "is not a network's class or a function annotated to return one"),
    ("{}:harmful", {"text": "x"}, "is not a network's class or a function annotated to return one"),
    ("os:system", {"command": "true"}, r"unet\.kind: 'os:system' is not"),
    ("own build", {}, "'own build' is not adm or diffusers or an import path"),
]


@pytest.mark.parametrize(("kind", "options", "message"), REFUSED)
def test_kinds_that_build_no_network_are_refused(kind: str, options: dict[str, Any], message: str, module: str) -> None:
    spec = OtherNetwork(kind.format(module), 4, 1, 1, None, options)
    with pytest.raises(ManifestError, match=message) as raised:
        build_network(spec, "unet", allow_plugins=True)
    assert "\n" not in str(raised.value)
    loaded = sys.modules.get(module)
    assert loaded is None or loaded.ran == []


def test_diffusers_has_no_classifier() -> None:
    with pytest.raises(ManifestError, match=r"classifier\.kind: 'diffusers' is not adm or an import path"):
        build_network(OtherNetwork("diffusers", 4, 1, 10), "classifier")


@pytest.mark.parametrize("build", [build_unet, build_classifier])
def test_only_adm_is_trained(build: Any) -> None:
    with pytest.raises(ManifestError, match=r"kind: 'own:net' is not adm, the kind that rarefy trains"):
        build(OtherNetwork("own:net", 4, 1, 1))


@pytest.mark.slow(15)
def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """examples/own_model with a few training steps and six images; its actor imports the module as well."""
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.setenv("PYTHONPATH", f"{EXAMPLE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(sys, "argv", ["digits_model.py", str(tmp_path / "model"), "--steps", "3"])
    import digits_model  # type: ignore[import-not-found] # on the path of this test alone

    digits_model.main()
    text = (EXAMPLE / "rare.toml").read_text()
    for old, new in {
        "../../out/digits/model": "model", "per_class = 20": "total = 6", "logsnr20": "logsnr3",
    }.items():  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "rare.toml").write_text(text)
    out = tmp_path / "out"
    command = ["generate", str(tmp_path / "rare.toml"), "--out", str(out), "--actors", "1", "--cpus-per-actor", "1"]
    assert "unet.kind: 'digits_model:DigitUNet' is not imported without --allow-plugins" in refused(command, capsys)
    assert main([*command, "--allow-plugins"]) == 0
    records = read_records(Store(str(out)), "digits-000000")
    assert [record.class_name for record in records] == ["zero", "one", "two", "three", "four", "five"]
    assert all(0 < record.confidence < 1 for record in records)
