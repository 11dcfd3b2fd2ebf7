"""The kernels as this processor has them, and as one with AVX-512 and bfloat16 products would."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rarefy.fast.cpu import native

HEADER = Path(__file__).parent / "avx512.h"


@pytest.fixture
def switched_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels on, for images of any size and on any processor."""
    monkeypatch.setattr(native, "LEAST_TILES", 1)
    monkeypatch.setattr(native, "has_matrix_units", lambda: False)
    threads = torch.get_num_threads()
    native.use(True)
    yield
    native.use(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels in their widest form, the instructions written out in C++: right, if slow."""
    if native._built().multiplies_pairs():
        pytest.skip("this processor has AVX-512 with bfloat16 products")
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the header that is emulated is x86's")
    made = tmp_path_factory.mktemp("kernels") / "emulated.so"
    flags = (*native.FLAGS, *native.THREADS, "-O2", "-Wno-psabi", "-shared", "-include", str(HEADER))
    sources = sorted(str(path) for path in native.SOURCES.glob("*.cpp"))
    compiler = native.find_compiler()
    assert compiler is not None
    subprocess.run([compiler, *flags, *sources, "-o", str(made)], check=True)
    return native._typed(ctypes.CDLL(str(made)))


@pytest.fixture(params=["as it is", "AVX-512"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test once with the kernels as they are built here, and once with their widest form."""
    name: str = request.param
    if name == "AVX-512":
        library = request.getfixturevalue("emulated")
        monkeypatch.setattr(native, "_library", lambda: library)
    return name
