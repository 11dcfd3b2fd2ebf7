"""What the tests of the project's kernels share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from goldens import relative_error
from rarefy.fast.cpu import native

BOTH = [torch.float32, torch.bfloat16]
# Of Winograd's algorithm, which adds up rounded sums: bfloat16 has 8 bits, and loses three of them.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2}

needs_compiler = pytest.mark.skipif(not native.available(), reason="needs a C++ compiler")


def on_both(test: Callable[..., None]) -> Callable[..., None]:
    """With the kernels as they are built here, and as for AVX-512 with bfloat16 products."""
    return needs_compiler(pytest.mark.usefixtures("processor")(test))


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative to the norm."""
    return relative_error(found.detach().double(), wanted.detach().double())
