"""rarefy's CPU kernels as they are built for this processor and, if that has AVX-512, as for one that has only AVX2."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch

from rarefy.device import find_compiler, processor
from rarefy.fast.cpu import build, native

AVX2 = ("-std=c++17", "-O3", "-mavx2", "-mfma", "-fPIC")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution kernels are used for images of any size."""
    monkeypatch.setattr(native, "LEAST_TILES", 1)


@pytest.fixture(scope="session")
def avx2_library() -> ctypes.CDLL:
    if "avx512f" not in processor():
        pytest.skip("this processor has no AVX-512: the kernels are built for AVX2 anyway")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "FLAGS", AVX2)
        library = native._library.__wrapped__()
    assert library is not None
    return library


@pytest.fixture(params=["native", "avx2"])
def kernels(request: pytest.FixtureRequest, any_size: None, threads: None, monkeypatch: pytest.MonkeyPatch) -> str:
    if find_compiler() is None:
        pytest.skip("needs a C++ compiler")
    name: str = request.param
    if name == "avx2":
        library = request.getfixturevalue("avx2_library")
        monkeypatch.setattr(native, "_library", lambda: library)
    return name
