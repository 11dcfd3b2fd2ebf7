"""Strict, safe loading of weights: torch files, whatever trainer wrote them, and safetensors."""

from __future__ import annotations

import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rarefy.errors import CheckpointError, bad, near_path
from rarefy.models.file_hash import file_sha256
from rarefy.models.unwrap import Found, closest, find_weights, is_counter, looks_like, some

Network = TypeVar("Network", bound=nn.Module)
# What torch and safetensors raise for files that are damaged or something else. torch unpickles nothing but tensors.
UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
              AssertionError, MemoryError, struct.error, zipfile.BadZipFile, pickle.UnpicklingError,
              safetensors.SafetensorError)  # fmt: skip
_GROUP_VALUES = 2**24  # 64 MiB of float32


def load_network(
    build: Callable[[], Network],
    path: Path,
    expected_sha256: str | None = None,
    prepare: Callable[[Network], object] | None = None,
) -> tuple[Network, str]:
    """Build a network without allocating it, fill it from ``path`` and return it with the file's sha256.

    prepare: called with the network before it has memory; it may change the types of parameters. They come back on the
    CPU in those types, convolution weights channels-last, without gradients, and the network in eval mode. At most one
    group of the file's entries is in memory at a time. If the file has more than the plain weights, a line on stderr
    says what was taken. Raises CheckpointError if the file is missing, is not a checkpoint, has another hash, does not
    have exactly the network's entries, has them more than once or has values that are not finite.
    """
    sha256 = file_sha256(path)
    if expected_sha256 and sha256 != expected_sha256.lower():
        raise CheckpointError(f"checkpoint: {str(path)!r} has sha256 {sha256}, the manifest allows {expected_sha256}")
    with torch.device("meta"):
        network = build()
    if prepare is not None:
        prepare(network)
    expected = network.state_dict()
    found = _find(path, expected)
    for names in _groups(expected):
        table = found.place.table(_read(path))  # once per group: pages of a mapped file stay as long as the mapping
        state = {name: _copy(name, table[found.place.names[name]], expected[name], path) for name in names}
        network.load_state_dict(state, strict=False, assign=True)
    _fill_buffers(network, build)
    return network.eval().requires_grad_(False), sha256


def _find(path: Path, expected: Mapping[str, Tensor]) -> Found:
    """Where the file has the network's entries; says so on stderr if that is not plain. Raises CheckpointError."""
    content = _read(path)
    try:
        found = find_weights(content, expected)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint: {str(path)!r} {error}") from None
    if found is None:
        _refuse(content, expected, path)
    table = found.place.table(content)
    types = {str(table[name].dtype).removeprefix("torch.") for name in found.place.names.values()}
    halves = sorted(types & {"float16", "bfloat16", "float64"})
    notes = [found.text(), f"stored as {' and '.join(halves)}, which is converted" if halves else ""]
    if any(notes):
        print(f"rarefy: checkpoint {path}: {'; '.join(note for note in notes if note)}", file=sys.stderr, flush=True)
    return found


def _refuse(content: Mapping[str, object], expected: Mapping[str, Tensor], path: Path) -> NoReturn:
    place, state = closest(content, expected)
    kind = looks_like(content)
    where = f"; most of its entries are in {str(place)!r}" if place.keys or place.prefix else ""
    check_entries(state, expected, path, where + (f"; it looks like {kind}" if kind else ""))
    raise AssertionError("a file that has exactly the network's entries fits it")


def _fill_buffers(network: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Compute the buffers that no file has (persistent=False): the network was built without memory."""
    missing = [name for name, buffer in network.named_buffers() if buffer.is_meta]
    if missing:
        buffers = dict(build().named_buffers())
        for name in missing:
            owner, _, leaf = name.rpartition(".")
            network.get_submodule(owner).register_buffer(leaf, buffers[name], persistent=False)


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


def _copy(name: str, value: Tensor, like: Tensor, path: Path) -> Tensor:
    """The value in ``like``'s type and on the CPU. Raises CheckpointError if it is not finite."""
    layout = torch.channels_last if like.ndim == 4 else torch.contiguous_format
    copy = torch.empty(like.shape, dtype=like.dtype, memory_format=layout).copy_(value)
    # The sum takes a thirtieth of the time; of finite values it may still overflow.
    if not copy.sum(dtype=torch.float32).isfinite() and (count := int((~copy.isfinite()).sum())):
        raise CheckpointError(
            f"checkpoint: {str(path)!r} has {count:,} values in {name} that are not finite (NaN or infinity); "
            "its training diverged, or it overflowed when it was saved in float16"
        )
    return copy


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a plain state dict from ``.safetensors`` or a torch file, never executing anything in it."""
    state = _read(path)
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(bad("checkpoint", str(path), "a state dict: a mapping of names to tensors"))
    return state


def _read(path: Path) -> dict[str, Any]:
    """A file's content: a table of tensors, further tables and other values. Raises CheckpointError."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UNREADABLE as error:
        if found := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"checkpoint: {str(path)!r} is not safe to read: it contains a Python object, {found[1]}, that could "
                "run code; load it where you trust it and save its state_dict alone with torch.save"
            ) from error
        raise CheckpointError(
            f"checkpoint: {str(path)!r} is not a readable checkpoint ({first_line(error)}){near_path(path)}"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(bad("checkpoint", str(path), "a state dict: a mapping of names to tensors"))
    return content


def first_line(error: BaseException) -> str:
    """The beginning of an error's message; its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def check_entries(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, hint: str = "") -> None:
    """Raise CheckpointError naming every kind of difference between the file's entries and the network's."""
    problems = []
    if missing := [name for name in expected if name not in state]:
        problems.append(f"missing {some(missing)}")
    if extra := [name for name, value in state.items() if name not in expected and not is_counter(name, value)]:
        problems.append(f"extra {some(extra)}")
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if misshapen:
        problems.append(f"misshapen {some(misshapen)}")
    if problems:
        raise CheckpointError(f"checkpoint: {str(path)!r} does not fit this network: {'; '.join(problems)}{hint}")
