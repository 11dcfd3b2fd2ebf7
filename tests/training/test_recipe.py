"""Recipes: every key has a range, and each mistake is reported in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rarefy.cli import main
from rarefy.errors import ManifestError
from rarefy.training.recipe import load_recipe
from rarefy.training.settings import TrainSettings

RECIPES = Path(__file__).parents[2] / "manifests" / "train"
BASE = 'preset = "fashion-mnist-28"\ndata = "d"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset = 1", "preset: 1 is not a non-empty string"),
        ('preset = "fashion-mnist-28"', "data: it is missing; give a non-empty string"),
        ('preset = "x"\ndata = "d"\n[train]\nimages = 5', "model.preset: 'x' is not one of"),
        (BASE + "init = 3", "init: 3 is not a non-empty string"),
        (BASE + "train = 3", "train: 3 is not a table"),
        (BASE + "ect = 0.1\n[train]\nimages=5", "ect: 0.1 is not a key of a diffusion recipe"),
        (BASE + "clean = true\n[train]\nimages = 5", "clean: True is not a key of a diffusion recipe"),
        (BASE, "train.images: it is missing; give an integer from 1 to 4294967296"),
        (BASE + "[train]\nimages = 0", "train.images: 0 is not an integer from 1 to 4294967296"),
        (BASE + "[train]\nimages = 5\nsteps = 5", "key: 'train.steps' is not a key of [train]"),
        ("not toml", "is not TOML"),
        (BASE + "[train]\nimages = 5", "data: '{folder}/d' is not a folder with class folders"),
    ],
)
def test_bad_recipes_name_key_value_and_what_is_allowed(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.toml").write_text(text)
    assert_refused("diffusion", message.replace("{folder}", str(tmp_path)), tmp_path, capsys)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("batch", "0", "an integer from 1 to 65536"),
        ("batch", "true", "an integer from 1 to 65536"),
        ("lr", "inf", "a number from 1e-09 to 10"),
        ("lr", "-1", "a number from 1e-09 to 10"),
        ("lr", "0", "a number from 1e-09 to 10"),
        ("weight_decay", "nan", "a number from 0 to 10"),
        ("warmup", "0.5", "an integer from 0 to 4294967296"),
        ("decay", "1.5", "a number from 0 to 1"),
        ("ema", "1.0", "a number from 0 to 0.999999"),
        ("clip", "0", "a number from 1e-06 to 1e+06"),
        ("seed", "1.5", "an integer from 0 to 4294967295"),
        ("seed", "4294967296", "an integer from 0 to 4294967295"),
        ("precision", '"float16"', "one of bfloat16, tf32, float32"),
        ("flip", "1", "true or false"),
        ("crop", "28", "an integer from 0 to 27"),
        ("balance", "1.5", "a number from 0 to 1"),
        ("accumulate", "3", "a divisor of train.batch, which is 128"),
        ("ema_halflife", "0", "an integer from 1 to 4294967296"),
        ("ema_halflife", "5\nema = 0.9", "allowed together with ema_halflife; give one of them"),
        ("checkpointing", '"yes"', "true or false"),
    ],
)
def test_every_setting_has_a_range(
    key: str, value: str, allowed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.toml").write_text(f"{BASE}[train]\nimages = 5\n{key} = {value}\n")
    assert_refused("diffusion", f"is not {allowed}", tmp_path, capsys)


@pytest.mark.parametrize(
    ("kind", "ect", "message"),
    [
        ("diffusion", "0.1", "ect: 0.1 is not a key of a diffusion recipe"),
        ("classifier", "-1", "ect: -1.0 is not a number from 0 to 1000"),
        ("classifier", "nan", "ect: nan is not a number from 0 to 1000"),
        ("classifier", "much", "--ect: invalid float value: 'much'"),
    ],
)
def test_bad_values_of_ect_are_refused(
    kind: str, ect: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.toml").write_text(f"{BASE}[train]\nimages = 4\n")
    assert_refused(kind, message, tmp_path, capsys, "--ect", ect)


def assert_refused(kind: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> None:
    """Check that the folder's recipe is refused in one line and leaves no output folder."""
    assert main(["train", kind, str(folder / "r.toml"), "--out", str(folder / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (folder / "out").exists()


def test_a_recipe_without_settings_takes_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(f"{BASE}[train]\nimages = 5\n")
    assert load_recipe(tmp_path / "r.toml", "diffusion").train == TrainSettings(5)
    assert load_recipe(tmp_path / "r.toml", "classifier").train == TrainSettings(5, flip=True)


def test_relative_paths_start_at_the_recipes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    recipe = tmp_path / "recipes" / "r.toml"
    recipe.write_text('preset = "fashion-mnist-28"\ndata = "../d"\ninit = "w.pt"\n[train]\nimages = 4\n')
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe(Path("recipes/r.toml"), "diffusion")
    assert loaded.init == tmp_path / "recipes" / "w.pt"
    assert os.path.normpath(loaded.data) == str(tmp_path / "d")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_that_ship_are_valid(path: Path) -> None:
    recipe = load_recipe(path, "diffusion" if "diffusion" in path.stem else "classifier")
    assert recipe.init is None or recipe.init.is_file()


def test_a_given_ect_equal_to_the_recipes_changes_nothing(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"{BASE}ect = 0.1\n[train]\nimages = 4\n")
    assert load_recipe(recipe, "classifier", 0.1) == load_recipe(recipe, "classifier")
    recipe.write_text(recipe.read_text().replace("ect = 0.1\n", ""))
    assert load_recipe(recipe, "classifier", 0.0) == load_recipe(recipe, "classifier")
    assert load_recipe(recipe, "classifier", 0.1).ect == 0.1


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"recipe: '.*r\.toml' cannot be read"):
        load_recipe(tmp_path / "r.toml", "diffusion")
