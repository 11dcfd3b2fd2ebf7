"""``rarefy models MODEL``: what it says of a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_model import WITHOUT_CLASSIFIER, refused, write_model

from rarefy.cli import main
from rarefy.models.folder import library

PROVENANCE = {
    "diffusion": {"images": 2000, "data": "photos", "recipe": "a\nb", "loss": [1, 2]},
    "quality": {"fid": 12.5, "count": 500},
}


def described(place: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, object], str]:
    """As JSON and as text."""
    assert main(["models", place, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert main(["models", place]) == 0
    return content, capsys.readouterr().out


def test_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path / "mine")
    (path / "provenance.json").write_text(json.dumps(PROVENANCE))
    (path / "old.pt").write_bytes(b"x")
    content, text = described(str(path), capsys)
    for network in content["networks"]:  # type: ignore[attr-defined]
        weights = load_file(path / f"{network['role']}.safetensors")
        assert network["parameters"] == sum(value.numel() for value in weights.values())
        assert f"{network['parameters']:,} parameters" in text
    sha256 = hashlib.sha256((path / "unet.safetensors").read_bytes()).hexdigest()
    assert sha256 in text and content["files"][0]["sha256"] == sha256  # type: ignore[index]
    assert content["classes"] == ["cat", "dog", "maine coon", "Siamese"] and "4: cat, dog" in text
    assert content["provenance"] == PROVENANCE
    assert "images 2000, data photos" in text and "fid 12.5, count 500" in text and "recipe" not in text
    assert "old.pt: config.json does not name it" in text


def test_a_folder_that_is_not_trained_and_has_no_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path / "mine", WITHOUT_CLASSIFIER)
    (path / "unet.safetensors").unlink()
    content, text = described(str(path), capsys)
    assert content["files"] == [{"role": "unet", "name": "unet.safetensors", "size_bytes": None, "sha256": None}]
    assert "unet.safetensors: missing" in text and "no scores" in text and "no provenance.json" in text


@pytest.mark.parametrize("name", library())
def test_every_model_that_ships(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """OpenAI's published sizes in millions, as in Dhariwal & Nichol 2021."""
    content, text = described(name, capsys)
    sizes = {"adm-imagenet-64": 296, "adm-imagenet-128": 422, "adm-imagenet-256": 554, "adm-imagenet-512": 559}
    if name in sizes:
        assert round(content["networks"][0]["parameters"] / 1e6) == sizes[name]  # type: ignore[index]
    assert text.startswith(f"{name}: ") and "not used" not in text


def test_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "a model folder or one of fashion-mnist-28" in refused(["models", "fashion"], capsys)
    assert "it has no config.json" in refused(["models", str(tmp_path)], capsys)
    path = write_model(tmp_path / "mine")
    (path / "provenance.json").write_text("{")
    assert "provenance.json: cannot be read" in refused(["models", str(path)], capsys)
