"""The built package: the wheel has what it needs and nothing else, the sdist has everything, the metadata is true."""

from __future__ import annotations

import email
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import rarefy

REPO = Path(__file__).parents[1]
ADDRESS = "https://example.org/org/rarefy"
NOT_SOURCE = (".git", ".venv", "out", "build", "dist", "site", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
FOLDERS = ("benchmarks", "docs", "examples", "jobs", "manifests", "tests")


def load_setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rarefy_setup", REPO / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SETUP = load_setup()


def copy_source(target: Path) -> Path:
    """A copy of the sources, because a build writes next to them."""
    shutil.copytree(REPO, target, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    return target


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this tree and the wheel that was built from the sdist."""
    folder = tmp_path_factory.mktemp("package")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
    done = subprocess.run(command, cwd=copy_source(folder / "source"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(wheel.read(name))


def files(folder: Path, base: Path) -> set[str]:
    """Files below a folder, relative to base, without those that Python or a build wrote, and without links."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(base).as_posix() for path in found if not path.is_symlink()}


def test_the_wheel_has_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = {name for name in files(REPO / "pipeline" / "rarefy", REPO / "pipeline") if "/manifests/" not in name}
    manifests = {f"rarefy/manifests/{path.name}" for path in (REPO / "manifests").glob("*.toml")}
    assert inside == package | manifests
    for name in ("models/library/fashion-mnist-28/unet.safetensors", "fast/cpu/kernels/conv.cpp", "py.typed"):
        assert f"rarefy/{name}" in inside
    demo = wheel.read("rarefy/manifests/demo.toml")
    assert demo == (REPO / "manifests" / "demo.toml").read_bytes()
    assert {Path(name).name for name in wheel.namelist() if "/licenses/" in name} == {"LICENSE", "NOTICE"}


def test_the_sdist_has_what_make_test_needs(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as tar:
        top = f"rarefy-{rarefy.__version__}"
        inside = {name.removeprefix(f"{top}/") for name in tar.getnames()}
        assert not [member for member in tar if member.issym()]
    expected = set().union(*(files(REPO / folder, REPO) for folder in FOLDERS))
    single = {name.name for name in REPO.iterdir() if name.is_file() and name.name not in (".gitignore", ".git")}
    assert expected | single | {"pipeline/rarefy/manifests/demo.toml"} <= inside
    assert not [name for name in inside if name.endswith(".pyc")]


def test_the_metadata_is_that_of_this_tree(wheel: zipfile.ZipFile) -> None:
    found = metadata(wheel)
    assert found["Version"] == rarefy.__version__ == SETUP.version()
    assert (found["Requires-Python"], found["License-Expression"]) == (">=3.11", "Apache-2.0")
    assert found["Description-Content-Type"] == "text/markdown"
    base = {re.split(r"[\[<>=;]", line)[0] for line in found.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert not base & {"torch", "ray", "scipy", "scikit-learn", "torch-fidelity", "safetensors"}
    assert {"numpy", "pandas", "pyarrow", "fsspec", "webdataset"} <= base
    assert set(found.get_all("Provides-Extra", [])) >= {"run", "cluster", "s3", "gcs", "hub", "docs", "consumers"}
    lines = wheel.read(f"rarefy-{rarefy.__version__}.dist-info/entry_points.txt").decode().split("\n")
    assert "rarefy = rarefy.cli:main" in lines


def test_upper_bounds_have_a_reason() -> None:
    """Each requirement with an upper bound or a fixed version has a comment that says why."""
    project = (REPO / "pyproject.toml").read_text().partition("[project]")[2].partition("[project.scripts]")[0]
    for line in project.splitlines():
        if re.search(r'"[\w.-]+(\[[\w,]+\])?(==|>=[^"]*<)', line):
            assert " # " in line, line


def test_links_of_the_readme_become_absolute() -> None:
    text = (REPO / "README.md").read_text()
    absolute = SETUP.with_absolute_links(text, ADDRESS, "v1")
    targets = re.findall(r"\]\(([^)\s]+)\)|\b(?:src|href)=\"([^\"]+)\"", text)
    assert any(re.search(r"\.(png|svg)$", first or second) for first, second in targets)
    for target in {first or second for first, second in targets} - {""}:
        if re.match("https?:|#", target):
            assert target in absolute
            continue
        assert (REPO / target.partition("#")[0]).exists(), target
        assert f"/v1/{target}" in absolute
    assert not re.search(r"\]\((?!https?:|#)", absolute)
    assert not re.search(r"\b(src|href)=\"(?!https?:|#)", absolute)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("![a](docs/a.png)", f"![a]({ADDRESS}/raw/v1/docs/a.png)"),
        ("[a](docs/a.md#b)", f"[a]({ADDRESS}/blob/v1/docs/a.md#b)"),
        ("[![a](docs/a.png)](docs/b.md)", f"[![a]({ADDRESS}/raw/v1/docs/a.png)]({ADDRESS}/blob/v1/docs/b.md)"),
        ("[a](https://x.org) [b](#c)", "[a](https://x.org) [b](#c)"),
        ('<img src="docs/a.png">', f'<img src="{ADDRESS}/raw/v1/docs/a.png">'),
        ('<a href="b.md">', f'<a href="{ADDRESS}/blob/v1/b.md">'),
        ('[a](b.md "c")', f'[a]({ADDRESS}/blob/v1/b.md "c")'),
    ],
)
def test_each_form_of_link(text: str, expected: str) -> None:
    assert SETUP.with_absolute_links(text, ADDRESS, "v1") == expected


def run_metadata(source: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Let setuptools write the metadata of a source tree into its folder ``info``."""
    script = "import setuptools.build_meta as m; print(m.prepare_metadata_for_build_wheel('info'))"
    (source / "info").mkdir()
    environment = os.environ | variables
    return subprocess.run(
        [sys.executable, "-c", script], cwd=source, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def small_source(tmp_path: Path) -> Path:
    """The sources without the large files, with an address."""
    ignored = shutil.ignore_patterns(*NOT_SOURCE, "tests", "library")
    shutil.copytree(REPO, tmp_path / "source", symlinks=True, ignore=ignored)
    replace(tmp_path / "source" / "pyproject.toml", r'^repository = ".*?"', f'repository = "{ADDRESS}/"')
    return tmp_path / "source"


def replace(path: Path, pattern: str, new: str) -> None:
    text, count = re.subn(pattern, new, path.read_text(), flags=re.MULTILINE)
    assert count == 1, (path, pattern)
    path.write_text(text)


def test_an_address_gives_the_package_its_links(small_source: Path) -> None:
    done = run_metadata(small_source)
    assert done.returncode == 0, done.stderr
    (path,) = (small_source / "info").rglob("METADATA")
    found = email.message_from_bytes(path.read_bytes())
    links = dict(line.split(", ") for line in found.get_all("Project-URL", []))
    assert links["Repository"] == ADDRESS
    assert links["Changelog"] == f"{ADDRESS}/blob/v{rarefy.__version__}/CHANGELOG.md"
    assert f"({ADDRESS}/raw/v{rarefy.__version__}/docs/" in str(found.get_payload())


def test_a_release_is_refused_until_everything_agrees(small_source: Path) -> None:
    done = run_metadata(small_source, RAREFY_RELEASE="1")
    assert done.returncode != 0
    assert "not fit for a release:\nCITATION.cff: it does not name the repository" in done.stderr
    replace(small_source / "CITATION.cff", "^license:", f'repository-code: "{ADDRESS}"\nlicense:')
    replace(small_source / "CHANGELOG.md", r"^## \[Unreleased\]", f"## [{rarefy.__version__}] - 2026-12-01")
    (small_source / "mkdocs.yml").write_text("site_name: rarefy\n")
    assert SETUP.release_problems(small_source) == [f"mkdocs.yml: its repo_url is not {ADDRESS!r}"]
    (small_source / "mkdocs.yml").write_text(f"site_name: rarefy\nrepo_url: {ADDRESS}\n")
    assert SETUP.release_problems(small_source) == []
    replace(small_source / "pipeline" / "rarefy" / "__init__.py", '^__version__ = .*"', '__version__ = "9.9.9.dev0"')
    replace(small_source / "pyproject.toml", r'^repository = ".*?"', 'repository = ""')
    problems = "\n".join(SETUP.release_problems(small_source))
    for problem in (
        "repository is empty",
        "its version is not 9.9.9.dev0",
        "no section [9.9.9.dev0]",
        "not a released",
    ):
        assert problem in problems


def test_the_citation_names_this_version_and_both_papers() -> None:
    citation: dict[str, Any] = yaml.safe_load((REPO / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == rarefy.__version__
    assert citation["license"] == tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["license"]
    assert all({"type", "title", "authors"} <= set(paper) for paper in citation["references"])
    text = (REPO / "CITATION.cff").read_text()
    assert "2606.13347" in text
    assert "10.1007/978-3-031-20047-2_43" in text


def test_another_package_called_pipeline_does_not_matter(tmp_path: Path) -> None:
    """PyPI has a package of that name, and other people's checkouts have a folder of it."""
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    for command in ([sys.executable, "-m", "rarefy"], [str(Path(sys.executable).with_name("rarefy"))]):
        done = subprocess.run(
            [*command, "models"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "fashion-mnist-28 " in done.stdout
