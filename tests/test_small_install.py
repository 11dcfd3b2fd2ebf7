"""``pip install rarefy`` without the extra ``run``: what reads a data set works, everything else says what to install.

The packages of the extras are blocked in a new process, where all commands run one after the other.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from made_up_audit import make_result, strip_rows, write_rows

from benchmarks.synthetic import synthetic_manifest, write_shards
from rarefy.audit.schema import BOOTSTRAP_PATH, METRICS_PATH, STRIPS_PATH
from rarefy.errors import MissingPackageError
from rarefy.extras import CORE, EXTRA_OF, NAMES, missing_package
from rarefy.shards.store import Store

REPO = Path(__file__).parents[1]
SCRIPT = """
import contextlib, importlib, io, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
for module in {modules!r}:
    importlib.import_module(module)
from rarefy.cli import main
results = []
for words in {commands!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            code = main(words)
        except SystemExit as end:  # --help
            code = end.code
    results.append([code, stderr.getvalue()])
print(json.dumps(results))
"""
DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # other names differ from the module's in hyphens at most


def run_all(commands: list[list[str]], modules: tuple[str, ...] = ()) -> dict[str, tuple[int, str]]:
    """Exit code and stderr of each command by its name, without the packages of any extra."""
    script = SCRIPT.format(blocked=set(EXTRA_OF), commands=commands, modules=modules)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    return {" ".join(words[:2]): (code, text) for words, (code, text) in zip(commands, results, strict=True)}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("sealed")
    write_shards(root, synthetic_manifest(2, rows=2), range(2), processes=1)
    return str(root)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folders = [tmp_path_factory.mktemp("audited") for _ in range(2)]
    for folder in folders:
        store = Store(str(folder))
        store.write_bytes(METRICS_PATH, json.dumps(make_result()).encode())
        write_rows(store, STRIPS_PATH, strip_rows())
        write_rows(store, BOOTSTRAP_PATH, [{"metric": "recall", "replicate": at, "value": 0.5} for at in range(200)])
    return str(folders[0]), str(folders[1])


def test_what_reads_a_data_set_works(sealed: str, audited: tuple[str, str], tmp_path: Path) -> None:
    commands = [
        ["--help"],
        ["run", "--help"],
        ["status", sealed],
        ["seal", sealed],
        ["verify", sealed],
        ["report", audited[0]],
        ["compare", *audited, "--page", str(tmp_path / "compare.html")],
        ["models"],
        ["plan"],
        ["view", sealed, "--static", str(tmp_path / "gallery.html")],
        ["export", sealed, str(tmp_path / "images.npz"), "--format", "npz"],
        ["doctor"],
    ]
    results = run_all(commands, ("rarefy.consume",))
    assert results.pop("doctor")[0] in (0, 1)  # 1 if it finds a problem with this machine
    assert {name: result for name, result in results.items() if result[0] != 0} == {}
    assert {"gallery.html", "images.npz"} <= {path.name for path in tmp_path.iterdir()}
    assert (Path(audited[0]) / "audit" / "report.html").is_file()


def test_what_computes_says_what_to_install(sealed: str, tmp_path: Path) -> None:
    out, manifest = str(tmp_path / "out"), str(REPO / "manifests" / "smoke.toml")
    commands = [
        ["run", manifest, "--out", out],
        ["generate", manifest, "--out", out],
        ["plan", manifest],
        ["audit", sealed],
        ["select", sealed],
        ["init", sealed, "--out", out],
        ["train", manifest],
        ["bench"],
        ["models", "fashion-mnist-28"],
        ["import", "diffusers", out, "--out", out],
    ]
    results = run_all(commands)
    expected = {}
    for words in commands:
        command = " ".join(words[: 2 if words[0] == "import" else 1])
        line = f"rarefy: error: rarefy {command} needs Ray and torch: pip install 'rarefy[run]'\n"
        expected[" ".join(words[:2])] = (2, line)
    assert results == expected
    assert not Path(out).exists()


def test_a_url_says_which_driver_to_install() -> None:
    results = run_all([["status", "s3://bucket/x"], ["status", "gs://bucket/x"], ["status", "hf://org/name"]])
    assert results == {
        "status s3://bucket/x": (2, "rarefy: error: out: 's3://bucket/x' needs s3fs: pip install 'rarefy[s3]'\n"),
        "status gs://bucket/x": (2, "rarefy: error: out: 'gs://bucket/x' needs gcsfs: pip install 'rarefy[gcs]'\n"),
        "status hf://org/name": (
            2,
            "rarefy: error: out: 'hf://org/name' needs huggingface_hub: pip install 'rarefy[hub]'\n",
        ),
    }


def test_the_extras_bring_what_the_messages_promise() -> None:
    extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for module, extra in EXTRA_OF.items():
        if module == "torchvision":
            continue  # torch-fidelity brings it
        names = [re.split(r"[\[<>=;]", line)[0].replace("-", "_") for line in extras[extra]]
        assert DISTRIBUTIONS.get(module, module).replace("-", "_") in names, (module, extra)


def test_a_package_that_is_installed_but_broken_is_not_missing() -> None:
    assert missing_package("x", ModuleNotFoundError("No module named 'torch._C'", name="torch._C")) is None
    assert missing_package("x", ModuleNotFoundError("No module named 'mine'", name="mine")) is None
    assert missing_package("x", ImportError("cannot import name 'x'")) is None


def test_the_core_packages_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    error = ModuleNotFoundError("No module named 'ray.util'", name="ray.util")
    found = missing_package("rarefy run", error)
    assert isinstance(found, MissingPackageError)
    assert str(found) == "rarefy run needs Ray: pip install 'rarefy[run]'"
    for name in CORE:
        monkeypatch.setitem(sys.modules, name, None)
    outer = ImportError("Install it")
    outer.__cause__ = error
    assert str(missing_package("x", outer)) == "x needs Ray and torch: pip install 'rarefy[run]'"
    assert set(NAMES) <= set(EXTRA_OF)
