"""``[classes] fill``: counts from the long tail of a folder of real images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rarefy.cli import main
from rarefy.errors import DataError, ManifestError
from rarefy.fill import Fill, trained_on
from rarefy.generate.estimate import PlanSummary, summarize
from rarefy.manifest import Manifest, load_manifest, parse_manifest
from rarefy.models.folder import find_model

# Names of the model's classes as folders may have them, and the model's own.
FOLDERS = {"Trouser": 5, "t-shirt_top": 2, "ankle boot": 3, "BAG": 5}
REAL = {"t-shirt/top": 2, "trouser": 5, "bag": 5, "ankle boot": 3}
NAMES = ("t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
HEAD = 'name = "filled"\n[model]\npreset = "fashion-mnist-28"\n'


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders with a long tail. The files are empty: filling only counts them."""
    for name, count in FOLDERS.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "photos" / name / f"{number}.png").touch()
    return tmp_path / "photos"


def filled(folder: Path, fill: str = 'fill = { data = "photos", to = 6 }') -> Manifest:
    path = folder / "rare.toml"
    path.write_text(f"{HEAD}[classes]\n{fill}\n", encoding="utf-8")
    return load_manifest(path)


def test_every_class_is_filled_up(photos: Path) -> None:
    manifest = filled(photos.parent)
    assert manifest.real == {k: REAL.get(name, 0) for k, name in enumerate(NAMES)}
    assert manifest.counts == {k: 6 - REAL.get(name, 0) for k, name in enumerate(NAMES)}


def test_without_a_target_the_largest_class_is_one(photos: Path) -> None:
    counts = filled(photos.parent, 'fill = { data = "photos" }').counts
    assert counts == {k: 5 - REAL.get(name, 0) for k, name in enumerate(NAMES) if name not in ("trouser", "bag")}


def test_digest_is_that_of_the_counts(photos: Path, tmp_path: Path) -> None:
    """It does not depend on where the images are."""
    manifest = filled(photos.parent)
    counts = ", ".join(f'"{name}" = {6 - REAL.get(name, 0)}' for name in NAMES)
    assert parse_manifest(f"{HEAD}[classes]\ncounts = {{ {counts} }}", "x").digest == manifest.digest
    photos.rename(tmp_path / "moved")
    assert filled(tmp_path, 'fill = { data = "moved", to = 6 }').digest == manifest.digest
    assert filled(tmp_path, 'fill = { data = "moved", to = 7 }').digest != manifest.digest


def test_the_runs_own_copy_needs_no_images(photos: Path, tmp_path: Path) -> None:
    comment = "# fill = { in = a comment }\n"
    manifest = filled(photos.parent, f'{comment}  fill = {{ data = "photos", to = 6 }}  # all')
    photos.rename(tmp_path / "gone")
    again = parse_manifest(manifest.text, "elsewhere/manifest.toml")
    assert (again.counts, again.digest, again.text) == (manifest.counts, manifest.digest, manifest.text)
    kept = f'{HEAD}[classes]\n{comment}# fill = {{ data = "photos", to = 6 }}  # all\ncounts = {{'
    assert manifest.text.startswith(kept)


def test_only_the_line_of_classes_is_replaced(photos: Path) -> None:
    """A line within a string may look like it."""
    path = photos.parent / "rare.toml"
    head = f'{HEAD}checkpoint = """\nfill = {{ }}\n"""\n'
    path.write_text(f'{head}[classes]\nfill = {{ data = "photos" }}\n', encoding="utf-8")
    assert load_manifest(path).text.startswith(f"{head}[classes]\n# fill")


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        ('fill = { data = "photos", to = 0 }', "classes.fill.to: 0 is not an integer from 1"),
        ('fill = { data = "photos", upto = 9 }', "classes.fill.upto"),
        ("fill = { to = 9 }", "classes.fill.data: it is missing; give the path"),
        ('fill = "photos"', "classes.fill: 'photos' is not a table"),
        ('per_class = 3\nfill = { data = "photos" }', "exactly one of per_class, total, counts, fill"),
        ('[classes.fill]\ndata = "photos"', "classes.fill: 'this table' is not written on one line"),
    ],
)
def test_bad_tables(photos: Path, fill: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        filled(photos.parent, fill)


def test_nothing_to_fill(photos: Path) -> None:
    for name in NAMES:
        if name not in REAL:
            (photos / name).mkdir()
            (photos / name / "1.png").touch()
    with pytest.raises(ManifestError, match="to: 1 is not more than the 1 images that every class has"):
        filled(photos.parent, 'fill = { data = "photos", to = 1 }')


def test_a_class_that_the_model_lacks(photos: Path) -> None:
    (photos / "giraffe").mkdir()
    (photos / "giraffe" / "1.png").touch()
    with pytest.raises(DataError, match=r"'giraffe' is not in the model.*'t-shirt/top'"):
        filled(photos.parent)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="photos"):
        filled(tmp_path)


def test_plan_shows_real_and_made(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rarefy.generate.estimate._seconds", lambda manifest: (None, "not timed"))
    summary = summarize(filled(photos.parent, 'fill = { data = "photos" }'))
    lines = summary.text().splitlines()
    assert "      1  trouser                         5            0            5" in lines
    assert "      9  ankle boot                      3            2            5" in lines
    assert "         all                            15           35           50" in lines
    assert "real: images in the data that [classes] fills up" in lines


def test_plan_shows_the_pool_and_what_is_kept(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rarefy.generate.estimate._seconds", lambda manifest: (None, "not timed"))
    fill = 'fill = { data = "photos" }\n[select]\nfrom = 4'
    lines = summarize(filled(photos.parent, fill)).text().splitlines()
    assert lines[0].startswith("filled: 140 images in 1 shards of ") or "140 images" in lines[0]
    assert lines[1].startswith("[select] keeps 35 of them: those with the highest rarity in each class, only images on")
    assert "  class  name                         real      to keep        total" in lines
    assert "      9  ankle boot                      3            2            5" in lines
    assert "         all                            15           35           50" in lines


def test_plan_shows_what_the_model_was_trained_on(tmp_path: Path) -> None:
    counts = dict(zip(NAMES, range(10), strict=True))
    model = replace(find_model("fashion-mnist-28"), path=tmp_path)
    assert trained_on(model) == {}
    for text in ("", "[]", '{"diffusion": {}}', '{"diffusion": {"classes": {"bag": 1}}}'):
        (tmp_path / "provenance.json").write_text(text)
        assert trained_on(model) == {}
    (tmp_path / "provenance.json").write_text(json.dumps({"diffusion": {"classes": counts}}))
    assert trained_on(model) == dict(enumerate(range(10)))


def test_command_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Manifest] = []

    def summary(manifest: Manifest) -> PlanSummary:
        seen.append(manifest)
        return summarize_(manifest)

    summarize_ = summarize
    monkeypatch.setattr("rarefy.generate.estimate._seconds", lambda manifest: (None, "not timed"))
    monkeypatch.setattr("rarefy.generate.estimate.summarize", summary)
    path = tmp_path / "m.toml"
    path.write_text(f"{HEAD}[classes]\nper_class = 1\n", encoding="utf-8")
    assert main(["plan", str(path), "--fill", str(photos), "--to", "6"]) == 0
    assert seen[0].counts == filled(tmp_path).counts
    assert seen[0].digest == filled(tmp_path).digest
    assert main(["plan", str(path), "--to", "6"]) == 2
    assert "to: 6 is not allowed without --fill DATA" in capsys.readouterr().err
    assert load_manifest(path, Fill(str(photos))).total == 35
