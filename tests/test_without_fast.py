"""rarefy without ``rarefy/fast``: it runs in float32 and meets the goldens."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rarefy

ROOT = Path(__file__).parents[1]
PACKAGE = Path(rarefy.__file__).parent
LIBRARY = PACKAGE / "models" / "library"


GOLDENS = """
import importlib.util, sys
import pytest
from rarefy import execution
assert importlib.util.find_spec("rarefy.fast") is None and execution._make_fast is None
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests/test_golden.py"]))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A copy of the package without the folder; the models, which are large, are linked."""
    folder = tmp_path_factory.mktemp("copy")

    def ignore(parent: str, names: list[str]) -> set[str]:
        hidden = {PACKAGE: {"fast"}, PACKAGE / "models": {"library"}}.get(Path(parent), set())
        return {"__pycache__", *hidden} & set(names)

    shutil.copytree(PACKAGE, folder / "rarefy", ignore=ignore)
    (folder / "rarefy" / "models" / "library").symlink_to(LIBRARY)
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def manifest(tmp_path: Path, precision: str) -> str:
    text = (ROOT / "manifests" / "smoke.toml").read_text()
    path = tmp_path / f"{precision}.toml"
    path.write_text(text.replace("[sampler]", f'[sampler]\nprecision = "{precision}"'))
    return str(path)


@pytest.mark.slow(10)
def test_the_goldens_are_met(environment: dict[str, str]) -> None:
    done = python(environment, "-c", GOLDENS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow(10)
def test_a_run_makes_its_images(environment: dict[str, str], tmp_path: Path) -> None:
    options = ["generate", manifest(tmp_path, "exact"), "--out", str(tmp_path / "out"), "--actors", "1"]
    options += ["--cpus-per-actor", "1"]
    done = python(environment, "-m", "rarefy", *options)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out" / "shards").glob("*.tar"))) == 2


def test_fast_is_refused_in_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    options = ["generate", manifest(tmp_path, "fast"), "--out", str(tmp_path / "out")]
    done = python(environment, "-m", "rarefy", *options)
    assert done.returncode == 2
    assert "precision: 'fast' is not possible here" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def imports(file: Path) -> set[str]:
    """Modules that a file imports, also within functions; ``from a import b`` counts as a and as a.b."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def test_only_execution_imports_it_and_only_two_functions() -> None:
    users = {
        str(file.relative_to(PACKAGE)): {name for name in imports(file) if name.startswith("rarefy.fast")}
        for file in PACKAGE.rglob("*.py")
        if PACKAGE / "fast" not in file.parents
    }
    assert {name: used for name, used in users.items() if used} == {
        "execution.py": {"rarefy.fast", "rarefy.fast.has_cpu_kernels", "rarefy.fast.prepare"}
    }


@pytest.mark.parametrize("name", ["adm", "blocks", "config"])
def test_the_networks_import_torch_and_their_config_alone(name: str) -> None:
    allowed = (
        "__future__",
        "collections.abc",
        "math",
        "typing",
        "dataclasses",
        "torch",
        "rarefy.errors",
        "rarefy.models.blocks",
        "rarefy.models.config",
    )
    assert all(module.startswith(allowed) for module in imports(PACKAGE / "models" / f"{name}.py"))
