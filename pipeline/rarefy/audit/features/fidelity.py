"""Access to torch-fidelity: importing its modules, and loading its feature networks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from rarefy.audit.features.dinov2 import SHAPES, load_dinov2
from rarefy.errors import CheckpointError, bad
from rarefy.models.checkpoint import UNREADABLE, first_line
from rarefy.models.file_hash import file_sha256
from rarefy.torchvision_operators import import_module

LOGITS_LAYER = "logits_unbiased"
HUB = "dinov2-"  # without a file of weights, torch.hub provides both code and weights
TORCHSCRIPT = "clip-"  # published as TorchScript, which is a program
FORCE, FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def load_module(name: str) -> ModuleType:
    """Import ``torch_fidelity.<name>``."""
    return import_module(f"torch_fidelity.{name}")


@dataclass(frozen=True, eq=False)
class Registered:
    """One of torch-fidelity's networks. layer: the one that distances are measured in; sha256: of its weights."""

    network: torch.nn.Module
    layer: str
    sha256: str


def registered_names() -> tuple[str, ...]:
    """torch-fidelity's extractors, and those that the user registered with it in this process."""
    return tuple(load_module("registry").FEATURE_EXTRACTORS_REGISTRY)


def load_registered(name: str, weights: str | None) -> Registered:
    """Load a registered extractor, with weights from a file or, for None, torch-fidelity's download.

    Its outputs are the features, then the logits if it has any. Raises CheckpointError if the file contains something
    else or the download fails.
    """
    kind = load_module("registry").FEATURE_EXTRACTORS_REGISTRY[name]
    layer = kind.get_default_feature_layer_for_metric("fid")
    layers = [layer, LOGITS_LAYER] if LOGITS_LAYER in kind.get_provided_features_list() else [layer]
    try:
        if name.startswith(TORCHSCRIPT):
            _check_published(name, weights)
        if weights is None:
            with _tensors_only(name):
                network = kind(name, layers)
            return Registered(network, layer, _state_sha256(network))
        if name in SHAPES:
            network, sha256 = load_dinov2(name, weights)
            return Registered(network, layer, sha256)
        sha256 = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
        with _tensors_only(name):
            return Registered(kind(name, layers, feature_extractor_weights_path=weights), layer, sha256)
    except CheckpointError:
        raise
    except UNREADABLE as error:
        hint = "give a path or put torch.hub's copy into its cache" if name.startswith(HUB) else "give a path"
        wrong = f"{weights} is not a weights file of {name}" if weights else f"{name} cannot be downloaded, {hint}"
        raise CheckpointError(f"extractor weights: {wrong} ({first_line(error)})") from error


def _check_published(name: str, weights: str | None) -> None:
    """Raise CheckpointError if the weights of a TorchScript network are here and are not the published file.

    A file that is not here yet is downloaded by torch-fidelity, which checks its hash then.
    """
    published: str = load_module("feature_extractor_clip").MODEL_METADATA[name]["hash"]
    path = Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / f"{name}-{published}.pt"
    if (weights or path.exists()) and (found := file_sha256(path)) != published:
        allowed = f"the published weights of {name}, whose sha256 is {published}: it has {found}"
        raise CheckpointError(bad("extractor weights", str(path), allowed))


@contextmanager
def _tensors_only(name: str) -> Iterator[None]:
    """Within this context ``torch.load`` unpickles tensors and plain containers alone, whoever calls it.

    torch-fidelity would unpickle weights files, and those that it downloaded before, without restrictions. The variable
    overrules that. TorchScript files are left out: they are programs, and ``_check_published`` has seen them.
    """
    if name.startswith(TORCHSCRIPT):
        yield
        return
    before = {variable: os.environ.pop(variable, None) for variable in (FORCE, FORCE_NOT)}
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[FORCE]
        os.environ.update({variable: value for variable, value in before.items() if value is not None})


def _state_sha256(network: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
