"""The inspection counts what was planted and says it in a few lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from planted_images import encode, noise, write_files

from rarefy.errors import DataError
from rarefy.images import inspect_images


def colour(seed: int, *shape: int) -> bytes:
    return encode(noise(seed, *(shape or (32, 32)), 3))


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Two classes with one image of each kind."""
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.new("L", (40, 40), shade) for shade in (0, 90)]
    grey = noise(7, 32, 32)
    files = {
        "cat/1.png": colour(1),
        "cat/2.png": colour(2, 48, 40),
        "cat/3.png": colour(1),
        "cat/grey.png": encode(grey),
        "cat/grey as rgb.png": encode(np.dstack([grey] * 3)),
        "cat/turned.png": encode(noise(3, 32, 64, 3), exif=exif),
        "dog/1.png": colour(1),
        "dog/alpha.png": encode(noise(4, 32, 32, 4)),
        "dog/moving.gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "dog/notes.txt": b"",
    }
    return write_files(tmp_path / "photos", files)


def test_everything_planted_is_found(planted: Path) -> None:
    found = inspect_images(planted)
    assert found.counts == {"cat": 6, "dog": 3} and found.images == 9 and found.class_names == ("cat", "dog")
    assert found.sizes == {(32, 32): 6, (40, 48): 1, (32, 64): 1, (40, 40): 1}
    assert found.modes["RGB"] == 6 and found.modes["RGBA"] == 1
    assert (found.grey, found.turned, found.transparent, found.channels) == (3, 1, 1, 3)
    assert found.animated.first == ["dog/moving.gif"]
    duplicates = found.duplicates
    assert (duplicates.count, duplicates.across) == (3, 1)
    assert duplicates.pairs == [("cat/1.png", "cat/3.png"), ("cat/grey as rgb.png", "cat/grey.png")]
    assert duplicates.pairs_across == [("cat/1.png", "dog/1.png")]


def test_the_text(planted: Path) -> None:
    lines = inspect_images(planted).text().splitlines()
    assert lines == [
        f"{planted}: 9 images in 2 classes (class folders)",
        "  cat  6",
        "  dog  3",
        "The largest class has 2 times as many images as the smallest.",
        "Size: 32 x 32 (67%), 40 x 48 (11%), 32 x 64 (11%), 40 x 40 (11%); sides from 32 to 64 pixels; "
        "only the central square of an image is used.",
        "Colour: 6 images have colour, 3 are grey (stored as RGB 6, L 1, RGBA 1, P 1).",
        "Turned upright as their EXIF data say: 1",
        "With transparency, put on white: 1",
        "Animated, first frame used: 1 (dog/moving.gif)",
        "Exact duplicates within a class: 2 (cat/1.png = cat/3.png; cat/grey as rgb.png = cat/grey.png)",
        "Exact duplicates in different classes, of which one label is wrong: 1 (cat/1.png = dog/1.png)",
        "Not used:",
        "  files that are not images: 1 (dog/notes.txt)",
    ]


def test_a_thousand_classes_fit_on_a_screen(tmp_path: Path) -> None:
    png = colour(0)
    files = {f"class {n}/{k}.png": png for n in range(1000) for k in range(1 + (n == 500) * 4)}
    found = inspect_images(write_files(tmp_path, files))
    lines = found.text().splitlines()
    assert len(lines) < 20 and max(map(len, lines)) < 200
    assert lines[0].endswith("1,004 images in 1,000 classes (class folders)")
    assert lines[1] == "  1 to 5 images per class, median 1; largest and smallest:"
    assert lines[2] == "  class 500  5"
    assert found.class_names[10] == "class 10" and found.class_names[999] == "class 999"


def test_broken_images_are_named_and_counted(planted: Path) -> None:
    write_files(planted, {"dog/bad.png": b"no image", "dog/cut.png": colour(9)[:500], "dog/void.png": b""})
    with pytest.raises(DataError, match=r"dog/bad\.png is not a readable image .*; 3 of 12 images cannot be read"):
        inspect_images(planted)
    found = inspect_images(planted, skip_broken=True)
    assert (found.broken.count, found.images) == (3, 9)
    (line,) = (line for line in found.text().splitlines() if line.startswith("Left out because"))
    assert all(name in line for name in (": 3 (", "bad.png", "cut.png", "void.png"))


def test_nothing_readable_is_an_error_even_if_broken_images_may_be_skipped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 1 images cannot be read"):
        inspect_images(write_files(tmp_path, {"a/1.png": b"?"}), skip_broken=True)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((8, 8), 8), ((28, 28), 28), ((33, 90), 32), ((5, 5), 8), ((100, 120), 96), ((300, 600), 256), ((64, 64), 64)],
)
def test_the_suggested_size_is_one_that_the_images_have(shape: tuple[int, int], size: int, tmp_path: Path) -> None:
    write_files(tmp_path, {"a/1.png": colour(0, *shape)})
    found = inspect_images(tmp_path)
    assert (found.suggested_size, found.channels) == (size, 3)


def test_palettes_with_equal_indices_are_no_duplicates_and_grey_sets_need_one_channel(tmp_path: Path) -> None:
    images = []
    for shade in (50, 200):
        image = Image.new("P", (8, 8), 0)
        image.putpalette([shade] * 3)
        images.append(encode(image))
    found = inspect_images(write_files(tmp_path, {"a/1.png": images[0], "a/2.png": images[1]}))
    assert (found.duplicates.count, found.channels) == (0, 1)
    assert "all images are grey" in found.text() and "No image occurs twice." in found.text()


@pytest.mark.parametrize("names", [("Cat", "cat"), ("t shirt", "T-shirt"), ("01", "1")])
def test_classes_with_equal_names_are_refused_before_anything_is_read(names: tuple[str, str], tmp_path: Path) -> None:
    write_files(tmp_path, {f"{name}/1.png": b"" for name in (*names, "dog")})
    with pytest.raises(DataError, match=r"data: the classes '.*' and '.*' have equal names: case, spaces"):
        inspect_images(tmp_path)


def test_a_folder_around_the_class_folders_is_noticed(tmp_path: Path) -> None:
    write_files(tmp_path, {f"archive/{name}/1.png": colour(1) for name in ("cat", "dog")})
    assert "If the folders within 'archive' are the classes, give the path" in inspect_images(tmp_path).text()
    assert "only one class" not in inspect_images(write_files(tmp_path / "flat", {"cat/1.png": colour(1)})).text()


def test_progress_ends_at_the_total(planted: Path) -> None:
    seen: list[tuple[int, int]] = []
    inspect_images(planted, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (9, 9)
