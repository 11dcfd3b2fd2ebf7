"""Options and fixtures of the whole suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rarefy.fast.cpu import native
from rarefy.fast.precision import Execution, use_kernels


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", default=str(Path(__file__).parent / "golden"), help="folder of golden tensors")


@pytest.fixture(params=["torch", "native"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The test once with torch's own operations and once with the project's kernels, for convolutions of any size."""
    if request.param == "native" and not native.available():
        pytest.skip("needs a C++ compiler")
    monkeypatch.setattr(native, "LEAST_TILES", 1)
    monkeypatch.setattr(native, "has_matrix_units", lambda: False)
    native.use(request.param == "native")
    yield request.param
    native.use(False)


@pytest.fixture
def switches() -> Iterator[None]:
    """What ``set_up`` switches for the whole process is put back."""
    names = ("benchmark", "deterministic", "allow_tf32")
    before = {name: getattr(torch.backends.cudnn, name) for name in names}
    yield
    use_kernels(Execution())
    for name, value in before.items():
        setattr(torch.backends.cudnn, name, value)
    torch.compiler.reset()
