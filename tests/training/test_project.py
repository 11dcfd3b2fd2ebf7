"""``train.toml``: what it says, and each mistake in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_project import TRAIN_TOML

from rarefy.cli import main
from rarefy.errors import ManifestError
from rarefy.models.config import NetworkConfig
from rarefy.training.project import load_project
from rarefy.training.recipe import PARTS


def written(folder: Path, *changes: tuple[str, str]) -> Path:
    text = TRAIN_TOML
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "train.toml").write_text(text)
    return folder / "train.toml"


def test_a_file_describes_a_model_and_a_recipe_for_each_part(tmp_path: Path) -> None:
    project = load_project(written(tmp_path))
    assert tuple(project.parts) == PARTS
    assert project.reference == tmp_path / "model" / "reference"
    model = project.model(("a", "b", "c"))
    assert model.path == tmp_path / "model" and model.class_names == ("a", "b", "c")
    assert isinstance(model.unet, NetworkConfig) and isinstance(model.classifier, NetworkConfig)
    assert (model.unet.out_channels, model.unet.num_classes, model.unet.image_size) == (2, 3, 8)
    assert (model.classifier.out_channels, model.classifier.num_classes) == (3, None)
    recipes = {part: project.recipe(part, model) for part in PARTS}
    assert {part: recipe.clean for part, recipe in recipes.items()} == dict(
        zip(PARTS, (False, False, True), strict=True)
    )
    assert {part: recipe.ect for part, recipe in recipes.items()} == dict(zip(PARTS, (0.0, 0.1, 0.0), strict=True))
    assert not any(recipe.train.flip for recipe in recipes.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("image_size = 8", "image_size = 3"), "image_size: 3 is not an integer from 4 to 1024"),
        (("image_size = 8", "image_size = 9"), "unet: image_size: 9 is not divisible by 2"),
        (("channels = 1", "channels = 2"), "channels: 2 is not 1 (grey) or 3 (RGB)"),
        (("image_size", "imagesize"), "key: 'imagesize' is not a key of train.toml (nearest: image_size)"),
        (('data = "../photos"', ""), "data: it is missing; give a non-empty string"),
        (("[unet]\n", '[unet]\nkind = "vit"\n'), "unet.kind: 'vit' is not adm, the kind that rarefy trains"),
        (("[unet]\n", "[unet]\nnum_classes = 7\n"), "unet.num_classes: 7 is not 4, as the rest of the file has it"),
        (("[unet]\n", "[unet]\nwidth = 7\n"), "key: 'unet.width' is not a key of [unet]"),
        (("model_channels = 32", "model_channels = 40"), "unet: channels: 40 is not a multiple of 32"),
        (
            ("channel_mult = [1, 1]", 'channel_mult = "1,1"'),
            "unet.channel_mult: '1,1' is not a list of",
        ),
        (
            ("attention_resolutions = [2]", "attention_resolutions = [0]"),
            "unet.attention_resolutions: [0] is not a",
        ),
        (("[diffusion]\n", "[diffusion]\nflip = 2\n"), "diffusion.flip: 2 is not true or false"),
        (("[diffusion]\nimages", "[diffusion]\nimagez"), "key: 'diffusion.imagez' is not a key of [diffusion]"),
        (("[diffusion]\n", "[diffusion]\nect = 0.1\n"), "key: 'diffusion.ect' is not a key of [diffusion]"),
        (("ect = 0.1", "ect = -1"), "classifier.ect: -1 is not a number from 0 to 1000"),
        (('model = "model"', 'model = "model"\nreference = "kept"'), "own/kept' is not a folder of held-out images"),
        (("[classifier_network]", "[network]"), "key: 'network' is not a key"),
        (("[unet]", "[other]"), "key: 'other' is not a key"),
        (('name = "mine"', "class_names = []"), "name: it is missing; give a non-empty string"),
        (('name = "mine"', 'name = "mine"\nclass_names = [1]'), "class_names: [1] is not a list of non-empty strings"),
    ],
)
def test_each_mistake_is_one_line_and_writes_nothing(
    change: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], photos: Path
) -> None:
    (tmp_path / "own").mkdir()
    path = written(tmp_path / "own", change)
    path.write_text(path.read_text().replace("../photos", str(photos)))
    assert main(["train", str(path), "--device", "cpu"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1] and all(line.startswith("train: ") for line in error[:-1])
    assert not (tmp_path / "own" / "model").exists()


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ((*PARTS,), "is not a file with at least one of the tables diffusion, classifier, judge"),
        (("classifier",), "judge: 'a table' is not allowed without [classifier]"),
        (("classifier_network",), "classifier_network: it is missing; give a table that describes the network"),
        (("unet",), "unet: it is missing; give a table that describes the U-Net"),
    ],
)
def test_tables_that_need_each_other(removed: tuple[str, ...], message: str, tmp_path: Path) -> None:
    parts = TRAIN_TOML.split("\n[")
    text = "\n[".join(part for part in parts if part.split("]")[0] not in removed)
    (tmp_path / "train.toml").write_text(text)
    with pytest.raises(ManifestError) as raised:
        load_project(tmp_path / "train.toml")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["t.toml", "--out", "o"], "--out: 'o' is not allowed here: t.toml says it itself"),
        (["t.toml", "--ect", "0.1"], "--ect: 0.1 is not allowed here"),
        (["unet", "t.toml"], "part: 'unet' is not one of diffusion, classifier, judge"),
        (["judge", "classifier", "t.toml"], "recipe: 'judge classifier t.toml' is not RECIPE or PART RECIPE"),
        (["preset.toml"], "part: it is missing; give diffusion or classifier before a recipe"),
        (["judge", "preset.toml"], "part: 'judge' is not diffusion or classifier"),
        (["diffusion", "preset.toml"], "--out: it is missing; give a folder, which a recipe with a preset needs"),
    ],
)
def test_the_command_line_says_what_goes_together(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.toml").write_text(TRAIN_TOML)
    Path("preset.toml").write_text('preset = "fashion-mnist-28"\ndata = "d"\n[train]\nimages = 4\n')
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
