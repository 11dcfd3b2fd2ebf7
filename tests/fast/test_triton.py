"""The kernels for GPUs on a machine without a GPU: Triton's interpreter runs them, its compiler builds them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rarefy.fast.gpu import norm as triton_norm

FOLDER = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


def run(script: str, **environment: str) -> str:
    """In a process of its own: whether kernels are interpreted is decided when Triton is imported."""
    path = os.pathsep.join(map(str, (FOLDER.parent / "pipeline", FOLDER)))
    done = subprocess.run(
        [sys.executable, str(FOLDER / script)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_results_and_gradients_are_those_of_the_formula() -> None:
    assert all(error < 1 for error in json.loads(run("triton_errors.py", TRITON_INTERPRET="1")))


@pytest.mark.slow
def test_they_build_for_a_gpu(tmp_path: Path) -> None:
    """For the H100's and the A100's instructions, in each form that a launch can take."""
    kernels = json.loads(run("triton_builds.py", TRITON_CACHE_DIR=str(tmp_path)))
    assert len(kernels) == 2 * 6 and all("ret;" in code for code in kernels.values())


@pytest.mark.parametrize("tokens", [1, 49, 128, 129, 65_536, 512 * 512])
@pytest.mark.parametrize("channels", [32, 96, 768, 1344])
def test_tiles_cover_an_image_once(tokens: int, channels: int) -> None:
    cut = triton_norm._Cut.of(tokens, channels, triton_norm.TILE)
    assert channels % cut.channels == 0 and cut.channels * cut.rows == triton_norm.TILE
    chunk = cut.rows * cut.tiles
    assert (cut.chunks - 1) * chunk < tokens <= cut.chunks * chunk
    assert cut.chunks <= triton_norm.MOST_CHUNKS
