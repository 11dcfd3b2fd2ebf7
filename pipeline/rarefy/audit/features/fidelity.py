"""Access to torch-fidelity: importing its modules, and loading its feature networks."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from rarefy.errors import CheckpointError, bad
from rarefy.torchvision_operators import import_module

LOGITS_LAYER = "logits_unbiased"
HUB = "dinov2-"  # torch.hub provides both code and weights
TORCHSCRIPT = "clip-"  # published as TorchScript, which torch.load with weights_only refuses


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
        if weights is None:
            network = kind(name, layers)
            return Registered(network, layer, _state_sha256(network))
        data = Path(weights).read_bytes()
        if not name.startswith(TORCHSCRIPT):
            # torch-fidelity unpickles the file without restrictions; this check admits tensors only.
            torch.load(weights, map_location="cpu", weights_only=True)
        network = kind(name, layers, feature_extractor_weights_path=weights)
        return Registered(network, layer, hashlib.sha256(data).hexdigest())
    except NotImplementedError:
        raise CheckpointError(bad("extractor weights", weights, f"accepted: {name} can only be downloaded")) from None
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "put torch.hub's copy into its cache" if name.startswith(HUB) else "give a path"
        wrong = f"{weights} is not a weights file of {name}" if weights else f"{name} cannot be downloaded, {hint}"
        raise CheckpointError(f"extractor weights: {wrong} ({cause})") from error


def _state_sha256(network: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
