"""How far one form's numbers are from another's."""

from __future__ import annotations

from torch import Tensor


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|, in two digits."""
    return float(f"{float((found.to(wanted.dtype) - wanted).norm() / wanted.norm()):.2g}")
