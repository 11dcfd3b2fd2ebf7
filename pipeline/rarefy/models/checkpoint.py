"""Strict, safe loading of weights: OpenAI's ``.pt`` files as they are, and safetensors."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rarefy.errors import CheckpointError, bad

Network = TypeVar("Network", bound=nn.Module)
_SHOWN = 5
_GROUP_VALUES = 2**24  # 64 MiB of float32


def file_sha256(path: Path) -> str:
    """sha256 of a file, hex. Raises CheckpointError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"checkpoint: {str(path)!r} cannot be read ({error.strerror})") from error


def load_network(
    build: Callable[[], Network],
    path: Path,
    expected_sha256: str | None = None,
    prepare: Callable[[Network], object] | None = None,
) -> tuple[Network, str]:
    """Build a network without allocating it, fill it from ``path`` and return it with the file's sha256.

    prepare: called with the network before it has memory; it may change the types of parameters. They come back on the
    CPU in those types, convolution weights channels-last, without gradients, and the network in eval mode. At most one
    group of the file's entries is in memory at a time. Raises CheckpointError if the file is missing, is not a
    checkpoint, has another hash, or does not have exactly the network's entries.
    """
    sha256 = file_sha256(path)
    if expected_sha256 and sha256 != expected_sha256.lower():
        raise CheckpointError(f"checkpoint: {str(path)!r} has sha256 {sha256}, the manifest allows {expected_sha256}")
    with torch.device("meta"):
        network = build()
    if prepare is not None:
        prepare(network)
    expected = network.state_dict()
    check_entries(read_state(path), expected, path)
    for names in _groups(expected):
        state = read_state(path)  # once per group: pages of a mapped file stay in memory as long as the mapping
        network.load_state_dict({n: _copy(state[n], expected[n]) for n in names}, strict=False, assign=True)
    return network.eval().requires_grad_(False), sha256


def _groups(state: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """The names in order, in groups with about the same number of values."""
    group: list[str] = []
    values = 0
    for name, value in state.items():
        group.append(name)
        values += value.numel()
        if values >= _GROUP_VALUES:
            yield group
            group, values = [], 0
    yield group


def _copy(value: Tensor, like: Tensor) -> Tensor:
    layout = torch.channels_last if like.ndim == 4 else torch.contiguous_format
    return torch.empty(like.shape, dtype=like.dtype, memory_format=layout).copy_(value)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors`` or a torch file, never executing anything in it."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(f"checkpoint: {str(path)!r} is not a readable checkpoint ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(bad("checkpoint", str(path), "a state dict: a mapping of names to tensors"))
    return state


def check_entries(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError naming every kind of difference between the file's entries and the network's."""
    problems = []
    if missing := [name for name in expected if name not in state]:
        problems.append(f"missing {_some(missing)}")
    if extra := [name for name in state if name not in expected]:
        problems.append(f"extra {_some(extra)}")
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if misshapen:
        problems.append(f"misshapen {_some(misshapen)}")
    if problems:
        raise CheckpointError(f"checkpoint: {str(path)!r} does not fit this network: {'; '.join(problems)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
