"""``rarefy init``: what it writes for a folder of images, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from own_images import SHAPES, write_shapes
from PIL import Image

from rarefy.cli import main
from rarefy.errors import DataError, OutputError, RarefyError
from rarefy.images import LabelledImages, load_images
from rarefy.models.config import NetworkConfig
from rarefy.models.folder import read_model_folder
from rarefy.project.choices import balance, plan_part
from rarefy.project.init import InitOptions, InitResult, init
from rarefy.project.mirror import measure_mirror
from rarefy.project.networks import CPU
from rarefy.project.speed import Speed, time_training
from rarefy.project.split import held_out_count, split_off
from rarefy.training.project import load_project

COUNTS = dict(zip(SHAPES, (30, 20, 14, 10, 6), strict=True))
HELD_OUT = dict(zip(SHAPES, (3, 2, 2, 2, 1), strict=True))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that trains a thousand images a second, and is not asked."""
    monkeypatch.setattr("rarefy.project.init.time_training", lambda *arguments: Speed(1000.0))


def run(options: InitOptions) -> tuple[InitResult, str]:
    lines: list[str] = []
    result = init(options, lines.append, lambda stage, done, total: None)
    return result, "\n".join(lines)


def held_out_images(project: Path) -> list[tuple[str, dict[str, str], np.ndarray]]:
    """(class id, KEY.json, pixels) of every image in the project's reference shards."""
    found = []
    for path in sorted((project / "model" / "reference").glob("*.tar")):
        with tarfile.open(path) as tar:
            content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for key in sorted({name.split(".")[0] for name in content}):
            pixels = np.asarray(Image.open(io.BytesIO(content[f"{key}.png"])))
            found.append((content[f"{key}.cls"].decode(), json.loads(content[f"{key}.json"]), pixels))
    return found


def test_a_project(shapes: Path, tmp_path: Path) -> None:
    result, text = run(InitOptions(str(shapes), str(tmp_path / "mine"), name="shapes"))
    assert (result.image_size, result.channels, result.held_out) == (16, 3, 10)
    assert list(result.counts.items()) == sorted(COUNTS.items())
    project = load_project(tmp_path / "mine" / "train.toml")
    assert project.data.resolve() == shapes.resolve()
    assert project.class_names == tuple(sorted(SHAPES))
    assert list(project.parts) == ["diffusion", "classifier", "judge"]
    assert project.parts["diffusion"].balance == 0.5
    model = read_model_folder(tmp_path / "mine" / "model")
    assert (model.class_names, model.image_size, model.channels) == (project.class_names, 16, 3)
    rare = tomllib.loads((tmp_path / "mine" / "rare.toml").read_text())
    assert rare["classes"]["fill"] == {"data": project_path(shapes, tmp_path / "mine"), "to": 30}
    assert result.to_make == sum(30 - n for n in COUNTS.values())
    assert "80 images in 5 classes" in text
    assert "ring (6)" in text
    assert "Rare images to make: 70, which fill 4 classes" in text


def project_path(data: Path, project: Path) -> str:
    return os.path.relpath(data.resolve(), project.resolve())


def test_every_line_of_both_files_says_why(shapes: Path, tmp_path: Path) -> None:
    run(InitOptions(str(shapes), str(tmp_path / "mine")))
    for name in ("train.toml", "rare.toml"):
        before = ""
        for line in (tmp_path / "mine" / name).read_text().splitlines():
            assert len(line) <= 120
            if " = " in line and not before.startswith(("#", "[[", "term", "scale", "tau")):
                assert " # " in line, line
            before = line


def test_held_out_images_are_those_of_the_data(shapes: Path, tmp_path: Path) -> None:
    run(InitOptions(str(shapes), str(tmp_path / "mine")))
    found = held_out_images(tmp_path / "mine")
    assert Counter(about["class_name"] for _, about, _ in found) == HELD_OUT
    for class_id, about, pixels in found:
        assert sorted(SHAPES)[int(class_id)] == about["class_name"] == about["source"].split("/")[0]
        assert (np.asarray(Image.open(shapes / about["source"])) == pixels).all()


def test_equal_seeds_give_equal_files(shapes: Path, tmp_path: Path) -> None:
    def content(folder: str, seed: int) -> dict[str, bytes]:
        out = tmp_path / folder / "mine"
        run(InitOptions(str(shapes), str(out), seed=seed))
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    first = content("a", 0)
    assert content("b", 0) == first
    assert content("c", 1)["model/reference/reference-000000.tar"] != first["model/reference/reference-000000.tar"]


def test_a_test_set_is_matched_by_name(shapes: Path, tmp_path: Path) -> None:
    """Its folders are in another order and another case; nothing is split off."""
    (tmp_path / "test").mkdir()
    write_shapes(tmp_path / "test", 16, (1, 2, 3, 4, 5), seed=1)
    (tmp_path / "test" / "circle").rename(tmp_path / "test" / "ZZ")
    (tmp_path / "test" / "ZZ").rename(tmp_path / "test" / "CIRCLE")
    result, text = run(InitOptions(str(shapes), str(tmp_path / "mine"), test=str(tmp_path / "test")))
    assert (result.training, result.held_out) == (80, 15)
    found = Counter(about["class_name"] for _, about, _ in held_out_images(tmp_path / "mine"))
    assert found == dict(zip(SHAPES, (1, 2, 3, 4, 5), strict=True))
    assert "15 images (the test set)" in text
    (tmp_path / "test" / "square").rename(tmp_path / "test" / "giraffe")
    with pytest.raises(DataError, match="'giraffe' is not in the model"):
        run(InitOptions(str(shapes), str(tmp_path / "other"), test=str(tmp_path / "test")))


def test_balanced_data_get_the_same_number_of_each_class(tmp_path: Path) -> None:
    (tmp_path / "even").mkdir()
    write_shapes(tmp_path / "even", 16, (12, 12, 12, 12, 12))
    result, text = run(InitOptions(str(tmp_path / "even"), str(tmp_path / "mine")))
    assert tomllib.loads((tmp_path / "mine" / "rare.toml").read_text())["classes"] == {"per_class": 6}
    assert result.to_make == 30
    assert "30, 6 of each class" in text
    assert load_project(tmp_path / "mine" / "train.toml").parts["classifier"].balance == 0


def test_broken_images_are_left_out_if_asked(shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes, tmp_path / "photos")
    (tmp_path / "photos" / "ring" / "0.png").write_bytes(b"no image")
    options = InitOptions(str(tmp_path / "photos"), str(tmp_path / "mine"))
    with pytest.raises(DataError, match=r"0\.png is not a readable image"):
        run(options)
    assert not (tmp_path / "mine").exists()
    result, _ = run(replace(options, skip_broken=True))
    assert result.counts["ring"] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": 0.0}, "held-out: 0.0 is not a fraction above 0 and at most 0.5"),
        ({"held_out": 0.6}, "held-out: 0.6"),
        ({"size": 33, "data": "nowhere"}, "size: 33 is not one of 8"),  # before the images are read
        ({"images": 0}, "images: 0 is not an integer from 1"),
        ({"seed": -1}, "seed: -1 is not an integer from 0"),
        ({"name": ""}, "name: '' is not"),
        ({"data": "nowhere"}, "nowhere"),
        ({"test": "DATA"}, "it is the training data, which has no test split"),
    ],
)
def test_bad_options(shapes: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    change = {key: str(shapes) if value == "DATA" else value for key, value in change.items()}
    options = replace(InitOptions(str(shapes), str(tmp_path / "mine")), **change)  # type: ignore[arg-type]
    with pytest.raises(RarefyError, match=message):
        run(options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    run(InitOptions(str(shapes), str(tmp_path / "mine")))  # an empty folder is not in use
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").rglob("*")}
    assert main(["init", str(shapes), "--out", str(tmp_path / "mine")]) == 2
    assert "is not a new or empty folder; choose another --out" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").rglob("*")} == before


def test_a_project_within_the_images_is_refused(shapes: Path) -> None:
    """Its files and sample grids would count as the user's images."""
    with pytest.raises(OutputError, match="is not a folder outside the images in"):
        run(InitOptions(str(shapes), str(shapes / "mine")))
    assert not (shapes / "mine").exists()


def test_the_working_folder_can_be_the_project(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is filled, not replaced: the user's shell would be left in a deleted folder."""
    monkeypatch.chdir(tmp_path)
    run(InitOptions(str(shapes), "."))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "rare.toml", "train.toml"]


def test_nothing_is_half_written(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(choices: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rarefy.project.write.rare_text", full)
    with pytest.raises(OutputError, match="cannot be written \\(No space left on device\\)"):
        run(InitOptions(str(shapes), str(tmp_path / "mine")))
    assert list(tmp_path.iterdir()) == []


def test_command_line(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(shapes), "--out", str(tmp_path / "mine"), "--images", "1000", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["name"], result["training"], result["held_out"]) == (shapes.name, 70, 10)
    assert load_project(tmp_path / "mine" / "train.toml").parts["diffusion"].images == 1000


def test_held_out_count() -> None:
    """The fraction, at least 2 of 10 or more, at most half."""
    tenth = {1: 0, 5: 0, 6: 1, 10: 2, 25: 2, 1000: 100}
    assert {images: held_out_count(images, 0.1) for images in tenth} == tenth
    assert [held_out_count(images, 0.5) for images in (1, 3, 10)] == [0, 1, 5]


def made_up(images: np.ndarray, labels: list[int]) -> LabelledImages:
    names = tuple(map(str, range(max(labels) + 1)))
    return LabelledImages(images, np.array(labels), names, tuple(map(str, range(len(images)))))


def test_copies_are_never_held_out() -> None:
    """Of ten images six are copies of each other, so only the other four can be held out."""
    pixels = np.zeros((20, 1, 8, 8), np.uint8)
    pixels[6:, 0, 0, 0] = np.arange(14) + 1
    split = split_off(made_up(pixels, [0] * 10 + [1] * 10), 0.5, seed=0)
    assert sorted(split.held_out[split.held_out < 10]) == [6, 7, 8, 9]
    assert len(split.held_out[split.held_out >= 10]) == 5
    assert sorted([*split.train, *split.held_out]) == list(range(20))
    with pytest.raises(DataError, match="give a test set with --test"):
        split_off(made_up(pixels[:6], [0] * 6), 0.5, seed=0)


def halves(bright: str) -> LabelledImages:
    """Two classes of noisy images: bright on the left or right, or at the top or bottom."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 100, (120, 1, 16, 16))
    pixels[::2, :, : 8 if bright == "top" else 16, : 8 if bright == "left" else 16] += 100
    pixels[1::2, :, 8 if bright == "top" else 0 :, 8 if bright == "left" else 0 :] += 100
    return made_up(pixels.astype(np.uint8), [0, 1] * 60)


@pytest.mark.parametrize(("bright", "flip"), [("top", True), ("left", False)])
def test_mirroring_is_off_where_it_changes_the_class(bright: str, flip: bool) -> None:
    data = halves(bright)
    mirror = measure_mirror(data, np.arange(80), data.take(np.arange(80, 120)))
    assert mirror.flip is flip
    assert mirror.why.startswith(f"{'on' if flip else 'off'}: ")


def test_mirroring_is_off_where_it_cannot_be_measured() -> None:
    data = halves("top")
    few = measure_mirror(data, np.arange(80), data.take(np.arange(80, 90)))
    one = measure_mirror(data, np.arange(80), data.take(np.arange(80, 120, 2)))
    assert (few.flip, one.flip) == (False, False)
    assert "10 held-out images are too few" in few.why
    assert "fewer than two classes" in one.why


def test_images_to_see() -> None:
    """12,000 x sqrt(10,000) = 1,200,000; a quarter of them for the classifier; or what six hours allow."""
    assert plan_part("diffusion", 10_000, CPU, Speed(1000.0), None).images == 1_200_000
    assert plan_part("classifier", 10_000, CPU, Speed(1000.0), None).images == 300_000
    slow = plan_part("diffusion", 10_000, CPU, Speed(10.0), None)
    assert slow.images == 220_000  # 6 h x 10/s = 216,000
    assert "6h00m allow here; 1,200,000 would be better" in slow.why_images
    assert plan_part("judge", 10_000, CPU, Speed(10.0), 500).images == 50


def test_balance() -> None:
    assert [balance(ratio, "diffusion")[0] for ratio in (1.0, 2.0, 2.1, 100.0)] == [0, 0, 0.5, 0.5]
    assert balance(100.0, "classifier")[0] == 1


def test_a_batch_that_does_not_fit_is_accumulated(monkeypatch: pytest.MonkeyPatch) -> None:
    def images_per_s(network: NetworkConfig, batch: int, device: torch.device) -> float:
        if batch > 40:
            raise torch.cuda.OutOfMemoryError
        return float(batch)

    monkeypatch.setattr("rarefy.project.speed._images_per_s", images_per_s)
    network = NetworkConfig(8, 1, 32, 2, 1, (), (1.0,))
    assert time_training(network, 128, torch.device("cpu")) == Speed(32.0, 4)
    monkeypatch.setattr("rarefy.project.speed._images_per_s", lambda *a: images_per_s(a[0], 100, a[2]))
    with pytest.raises(RarefyError, match="give a smaller --size"):
        time_training(network, 128, torch.device("cpu"))


def test_the_reference_can_be_read_as_a_data_set(shapes: Path, tmp_path: Path) -> None:
    run(InitOptions(str(shapes), str(tmp_path / "mine")))
    data = load_images(tmp_path / "mine" / "model" / "reference", 16, 3)
    assert Counter(data.class_names[label] for label in data.labels) == HELD_OUT
