"""Manifests that ship are found by name, from any folder, and a user's file of that name comes first."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from rarefy import shipped
from rarefy.cli import main
from rarefy.errors import ManifestError
from rarefy.manifest import load_manifest
from rarefy.shipped import find_manifest, shipped_hint, shipped_manifests, shipped_names

MANIFESTS = Path(__file__).parents[1] / "manifests"


def test_all_of_the_folder_ship_and_load_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(shipped_names()) == sorted(path.stem for path in MANIFESTS.glob("*.toml"))
    for each in shipped_manifests():
        manifest = load_manifest(each.name)
        assert manifest.name == each.name
        assert manifest.text == (MANIFESTS / f"{each.name}.toml").read_text()
        model = tomllib.loads(manifest.text)["model"]
        for key in ("path", "checkpoint", "classifier"):  # relative ones would start in the installed package
            assert Path(model.get(key, "/")).is_absolute()


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("smoke").mkdir()
    assert find_manifest("smoke").read_bytes() == (MANIFESTS / "smoke.toml").read_bytes()
    Path("demo").write_text('name = "mine"\nmodel.preset = "fashion-mnist-28"\nclasses.total = 5\n')
    assert (load_manifest("demo").name, load_manifest("plain").name) == ("mine", "plain")


@pytest.mark.parametrize("given", ["dmo", "manifests/demo.toml"])
def test_a_near_name_is_suggested(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError, match=r"No such file or directory \(rarefy's own manifest is called demo\)$"):
        load_manifest(given)
    assert shipped_hint("mine/rare.toml") == ""


def test_plan_lists_what_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json"]) == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert set(listed) == set(shipped_names())
    assert listed["demo"]["description"].startswith("The demo: 600 rare images")
    assert Path(listed["demo"]["path"]).is_file()
    for name, each in listed.items():
        named = [path for path in (MANIFESTS / f"{name}.toml").read_text().splitlines() if "placeholder" in path]
        assert ("do not ship" in each["description"]) == bool(named), "files that a user lacks are named first"
    assert main(["plan"]) == 0
    assert f"copy its file from {shipped.FOLDER}." in capsys.readouterr().out
    assert main(["plan", "--to", "5"]) == 2
    assert capsys.readouterr().err == "rarefy: error: --to: 5 is not allowed without a manifest\n"
