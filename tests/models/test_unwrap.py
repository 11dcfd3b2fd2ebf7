"""Checkpoints as trainers write them: the one set of weights that fits is found, said, and loaded to the bit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rarefy.errors import CheckpointError
from rarefy.models.checkpoint import load_network

State = dict[str, Tensor]


class Net(nn.Module):
    """A small network with a buffer that files have and one that they have not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)
        self.register_buffer("grid", torch.arange(5.0), persistent=False)


def state(seed: int) -> State:
    torch.manual_seed(seed)
    return {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in Net().state_dict().items()}


RAW, EMA = state(1), state(2)


def prefixed(prefix: str, values: State) -> State:
    return {prefix + name: value for name, value in values.items()}


def dotless(prefix: str, values: State) -> State:
    return {prefix + name.replace(".", ""): value for name, value in values.items()}


COUNTERS = {"initted": torch.tensor(True), "step": torch.tensor(7)}
# Name of the form: the file's content, the weights that must be found, a part of the line on stderr.
FORMS: dict[str, tuple[dict[str, Any], State, str]] = {
    "plain": (RAW, RAW, ""),
    "wrapped": ({"state_dict": RAW, "epoch": 3}, RAW, "uses the weights in 'state_dict'; does not use epoch"),
    "data-parallel": (prefixed("module.", RAW), RAW, "'module'"),
    "compiled": ({"model": prefixed("_orig_mod.", RAW)}, RAW, "'model._orig_mod'"),
    "compiled-parallel": (prefixed("module._orig_mod.", RAW), RAW, "'module._orig_mod'"),
    "own-training-state": (
        {"model": RAW, "ema": EMA, "optimizer": {"state": {0: {"exp_avg": RAW["head.weight"]}}, "param_groups": []},
         "step": 9, "seconds": 1.5},
        EMA,
        "uses the averaged (EMA) weights in 'ema'; not those in 'model'; does not use optimizer, step, seconds",
    ),
    "timm": ({"state_dict": RAW, "state_dict_ema": EMA, "arch": "x"}, EMA, "'state_dict_ema'; not those in 'state_"),
    "guided": ({"model": RAW, "ema_0.9999": EMA}, EMA, "'ema_0.9999'"),
    "lightning": (
        {"state_dict": {**prefixed("net.", RAW), "loss.scale": torch.ones(3)}, "global_step": 5},
        RAW,
        "uses the weights in 'state_dict.net'; does not use global_step, loss",
    ),
    "lightning-ema": (
        {"state_dict": {**prefixed("model.", RAW), **prefixed("model_ema.", EMA)}}, EMA, "'state_dict.model_ema'",
    ),
    "lucidrains": (
        {"step": 1, "model": prefixed("model.", RAW), "opt": {},
         "ema": {**COUNTERS, **prefixed("online_model.model.", RAW), **prefixed("ema_model.model.", EMA)}},
        EMA,
        "'ema.ema_model.model'; not those in 'model.model', 'ema.online_model.model'",
    ),
    "latent-diffusion": (
        {"state_dict": {**prefixed("model.diffusion_model.", RAW), **dotless("model_ema.diffusion_model", EMA),
                        "model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}},
        EMA,
        "'state_dict.model_ema.diffusion_model'; not those in 'state_dict.model.diffusion_model'; names without dots",
    ),
    "swa": ({"n_averaged": torch.tensor(3), **prefixed("module.", EMA)}, EMA, "averaged (EMA) weights in 'module'"),
    "counters": ({**RAW, **COUNTERS}, RAW, "does not use initted, step"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_weights_are_found_and_said(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, expected, said = FORMS[name]
    torch.save(content, tmp_path / "file.pt")
    network, _ = load_network(Net, tmp_path / "file.pt")
    for key, value in network.state_dict().items():
        assert torch.equal(value, expected[key]), key
    captured = capsys.readouterr().err
    assert captured.count("\n") == (1 if said else 0) and said in captured


def test_buffers_that_no_file_has_are_computed(tmp_path: Path) -> None:
    torch.save(RAW, tmp_path / "file.pt")
    network, _ = load_network(Net, tmp_path / "file.pt")
    assert network.get_buffer("grid").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_half_precision_is_converted_and_said(
    dtype: torch.dtype, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"file{suffix}"
    half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in RAW.items()}
    torch.save(half, path) if suffix == ".pt" else save_file(half, path)
    network, _ = load_network(Net, path)
    assert torch.equal(network.get_parameter("head.weight"), half["head.weight"].float())
    assert f"stored as {str(dtype).removeprefix('torch.')}, which is converted" in capsys.readouterr().err


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path) -> None:
    broken = {**RAW, "head.weight": RAW["head.weight"].clone()}
    broken["head.weight"][1, 2] = value
    torch.save({"model": broken}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=r"has 1 values in head\.weight that are not finite"):
        load_network(Net, tmp_path / "file.pt")


def without(values: State, name: str) -> State:
    return {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"netA": RAW, "netB": EMA}, "has several sets of weights that fit ('netA', 'netB'); save the one to use"),
        ({"ema_0.99": RAW, "ema_0.9999": EMA}, "several sets of weights that fit ('ema_0.99', 'ema_0.9999')"),
        ({"model": without(RAW, "head.bias")}, "missing head.bias; most of its entries are in 'model'"),
        (prefixed("module.", {**RAW, "extra.weight": torch.ones(2)}), "extra extra.weight; most of its entries are in"),
        ({"model": {**RAW, "head.bias": torch.ones(3)}}, "misshapen head.bias (3,) instead of (2,)"),
        ({"shadow_params": [RAW["head.bias"]], "decay": 0.9}, "looks like an average of diffusers' EMAModel"),
        ({"param_groups": [], "state": {}}, "looks like the state of an optimizer"),
        ({"state_dict": {"first_stage_model.encoder.weight": torch.ones(2)}}, "looks like a latent diffusion model"),
        ({"down_blocks.0.resnets.0.conv1.weight": torch.ones(2)}, "rarefy import diffusers reads"),
        ({"input_blocks.0.0.weight": torch.ones(2)}, "looks like a classifier of guided-diffusion's form"),
        ({"input_blocks.0.0.weight": torch.ones(2), "output_blocks.0.0.weight": torch.ones(2)}, "a U-Net of guided"),
        ([RAW], "is not a state dict"),
        ({"state_dict": RAW, "args": argparse.Namespace(lr=1)}, "a Python object, argparse.Namespace, that could run"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_hint(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(CheckpointError) as raised:
        load_network(Net, tmp_path / "file.pt")
    assert message in str(raised.value) and "\n" not in str(raised.value)
