"""Strict loading: OpenAI's nine files by their entries, and every way a file can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rarefy.errors import CheckpointError
from rarefy.models import checkpoint
from rarefy.models.adm import ADM, Classifier, UNet
from rarefy.models.checkpoint import load_network
from rarefy.models.config import NetworkConfig
from rarefy.models.file_hash import file_sha256
from rarefy.models.folder import find_model, library
from rarefy.models.load import load_models

KEYS = Path(__file__).parent.parent / "checkpoint-keys"
SMALL = NetworkConfig(
    image_size=8, in_channels=1, model_channels=32, out_channels=2, num_res_blocks=1,
    attention_resolutions=(2,), channel_mult=(1, 2),
)  # fmt: skip


def network_of(name: str) -> ADM:
    """The preset network that a public file belongs to."""
    size = name.split("x")[0]
    preset = library()[f"adm-imagenet-{size}{'-uncond' if name.endswith('uncond') else ''}"]
    return Classifier(preset.classifier) if name.endswith("classifier") else UNet(preset.unet)


@pytest.mark.parametrize("keys", sorted(KEYS.glob("*.json")), ids=lambda p: p.stem)
def test_openais_files_load_strictly(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch file with the public file's entries; each is one stored zero, expanded, so that the file stays small."""
    monkeypatch.setattr(checkpoint, "_copy", lambda name, value, like, path: value)  # the networks have up to 2 GB
    entries = json.loads(keys.read_text())["state_dict"]
    state = {name: torch.zeros(1).expand(shape) for name, shape in entries.items()}
    path = tmp_path / f"{keys.stem}.pt"
    torch.save(state, path)
    network, _ = load_network(lambda: network_of(keys.stem), path)
    assert {name: list(value.shape) for name, value in network.state_dict().items()} == entries
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in network.parameters())
    wrong = {**state, "time_embed.0.weight": torch.zeros(3, 3)}
    torch.save(wrong, path)
    with pytest.raises(CheckpointError, match=r"misshapen time_embed\.0\.weight \(3, 3\) instead of"):
        load_network(lambda: network_of(keys.stem), path)


def test_all_nine_public_files_are_covered() -> None:
    assert len(list(KEYS.glob("*.json"))) == 9


def small_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn_like(value) for name, value in UNet(SMALL).state_dict().items()}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("out.2.bias"), "missing out.2.bias"),
        (lambda s: s.update({"head.weight": torch.zeros(1)}), "extra head.weight"),
        (lambda s: s.update({"out.0.bias": torch.zeros(7)}), r"misshapen out.0.bias \(7,\) instead of \(32,\)"),
    ],
    ids=["missing", "extra", "misshapen"],
)
def test_other_entries_are_refused_by_name(change: Any, message: str, suffix: str, tmp_path: Path) -> None:
    state = small_state()
    change(state)
    path = tmp_path / f"weights{suffix}"
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    with pytest.raises(CheckpointError, match=message):
        load_network(lambda: UNet(SMALL), path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("group", [20_000, 2**24])
def test_values_arrive_as_they_are_stored(
    group: int, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_GROUP_VALUES", group)
    state, path = small_state(), tmp_path / f"weights{suffix}"
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    network, sha256 = load_network(lambda: UNet(SMALL), path, file_sha256(path).upper())
    assert sha256 == file_sha256(path)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name])


def test_values_arrive_in_the_types_and_layout_that_were_prepared(tmp_path: Path) -> None:
    def prepare(network: UNet) -> None:
        network.middle_block.bfloat16()

    path = tmp_path / "weights.safetensors"
    save_file(small_state(), path)
    network, _ = load_network(lambda: UNet(SMALL), path, prepare=prepare)
    inner, outer = network.get_parameter("middle_block.0.in_layers.2.weight"), network.get_parameter("out.2.weight")
    first = network.get_parameter("input_blocks.0.0.weight")
    assert (first.dtype, inner.dtype, outer.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    assert inner.is_contiguous(memory_format=torch.channels_last) and not inner.is_contiguous()
    assert torch.equal(inner, small_state()["middle_block.0.in_layers.2.weight"].bfloat16())


def test_loading_leaves_the_compiler_alone() -> None:
    """Drawing initial weights on the meta device would import it: a second and 70 MB in each actor."""
    code = (
        "import sys, torch; from rarefy.execution import load_prepared; from rarefy.models.folder import find_model; "
        "load_prepared(find_model('fashion-mnist-28'), None, None, (None, None), torch.device('cpu'), 'fast'); "
        "sys.exit('sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_file_that_is_no_checkpoint_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"not a checkpoint at all")
    with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
        load_network(lambda: UNet(SMALL), path)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return (Path.touch, (tmp_path / "pwned",))

    torch.save({"weight": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="not safe to read: it contains a Python object"):
        load_network(lambda: UNet(SMALL), tmp_path / "evil.pt")
    assert not (tmp_path / "pwned").exists()


def test_a_missing_file_and_a_wrong_hash_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_network(lambda: UNet(SMALL), tmp_path / "absent.pt")
    path = tmp_path / "weights.pt"
    torch.save(small_state(), path)
    with pytest.raises(CheckpointError, match="the manifest allows 0123"):
        load_network(lambda: UNet(SMALL), path, "0123")


def test_a_public_preset_without_a_path_says_which_field_is_missing() -> None:
    with pytest.raises(CheckpointError, match=r"model\.checkpoint: it is missing; give the path of a file"):
        load_models(find_model("adm-imagenet-64"), None, None, (None, None), torch.device("cpu"))
