"""A program that compiles the kernels for GPUs that need not exist here; prints their assembly as a line of JSON."""

from __future__ import annotations

import json
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rarefy.fast.gpu import kernels as triton_kernels

ARRAYS = {"x", "y", "grad", "grad_x", "scale", "shift"}
FLOATS = {"means", "squares", "weight", "bias", "statistics", "sums", "gradients"}
TILES: dict[str, Any] = {"SILU": True, "TILES": 2, "ROWS": 32, "CHANNELS": 128}
GROUPS: dict[str, Any] = {"SCALED": True, "CHUNKS": 4, "WIDTH": 8}
NAMES = (
    "chunk_statistics", "coefficients", "apply", "chunk_gradients", "gradient_coefficients", "gradient_input",
)  # fmt: skip


def assembly(name: str, architecture: int, ones: bool) -> str:
    """ones: whether the numbers of tokens and chunks are 1; Triton then compiles them as constants."""
    kernel = getattr(triton_kernels, name)
    constants = {k: v for k, v in {**TILES, **GROUPS}.items() if k in kernel.arg_names}
    if ones:
        constants |= {k: 1 for k in ("tokens", "chunks") if k in kernel.arg_names}
    image = "*fp32" if ones else "*bf16"
    types = dict.fromkeys(ARRAYS, image) | dict.fromkeys(FLOATS, "*fp32") | {"eps": "fp32"}
    signature = {k: "constexpr" if k in constants else types.get(k, "i32") for k in kernel.arg_names}
    places = {(kernel.arg_names.index(k),): v for k, v in constants.items()}
    built = triton.compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", architecture, 32))
    return str(built.asm["ptx"])


if __name__ == "__main__":
    print(json.dumps({f"{n} {a}": assembly(n, a, a == 80) for n in NAMES for a in (80, 90)}))
