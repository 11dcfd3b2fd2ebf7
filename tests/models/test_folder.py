"""Model folders: what a ``config.json`` may say, and one line with path and key for whatever it may not."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
from small_model import MODEL, UNCONDITIONAL, WITHOUT_CLASSIFIER, write_model

from rarefy.errors import ManifestError
from rarefy.models.config import OtherNetwork
from rarefy.models.folder import (
    LIBRARY,
    ModelFolder,
    config_content,
    library,
    parse_config,
    read_model_folder,
    sampling_config,
    write_model_folder,
)

OTHER = dataclasses.replace(
    MODEL,
    unet=OtherNetwork("mypackage.module:build", 8, 1, 1, None, {"depth": 3, "widths": [1, 2]}),
    classifier=None,
    class_names=(),
    schedule="linear",
    prediction="v",
    beta_range=(1e-4, 0.02),
    files={},
)


@pytest.mark.parametrize("model", [MODEL, WITHOUT_CLASSIFIER, OTHER, *library().values()], ids=lambda model: model.name)
def test_what_is_written_is_read(model: ModelFolder, tmp_path: Path) -> None:
    if any(".." in name for name in model.files.values()):
        model = dataclasses.replace(model, files={})
    write_model_folder(model, tmp_path)
    assert read_model_folder(tmp_path) == dataclasses.replace(model, path=tmp_path)


def change(path: str, value: object) -> dict[str, Any]:
    """MODEL's configuration with another value at a dotted path; ``...`` deletes the key."""
    content = copy.deepcopy(json.loads(json.dumps(config_content(MODEL))))
    table, keys = content, path.split(".")
    for key in keys[:-1]:
        table = table[key]
    if value is ...:
        del table[keys[-1]]
    else:
        table[keys[-1]] = value
    return content  # type: ignore[no-any-return]


BAD = [
    ("format", "rarefy-model-v9", "rarefy-model-v1"),
    ("name", ..., "name: this key is missing"),
    ("nane", "x", "nearest: name"),
    ("name", 3, "a string"),
    ("image_size", 16, "8, which is unet.image_size"),
    ("channels", 3, "1, which is unet.in_channels"),
    ("class_names", ["cat", "dog"], "4, the number of classes"),
    ("class_names", ["cat", "dog", "Cat ", "x"], "apart from case"),
    ("class_names", "cat", "a list of non-empty strings"),
    ("class_names", ["cat", "dog", "", "x"], "a list of non-empty strings"),
    ("wordnet_ids", ["n1", "n2"], "4, one per class"),
    ("schedule", "cosine", "a JSON object"),
    ("schedule.steps", 0, "an integer from 1"),
    ("schedule.prediction", "epsilon", "one of eps, v, sample"),
    ("schedule.beta_range", [0.02, 0.0001], "first <= last"),
    ("schedule.name", None, "a string"),
    ("recommended_scale", float("nan"), "a number from 0"),
    ("recommended_scale", True, "a number from 0"),
    ("unet", None, "a JSON object"),
    ("unet.kind", "unet2d", "adm, diffusers or an import path"),
    ("unet.kind", ..., "adm, diffusers or an import path"),
    ("unet.model_channels", "32", "an integer from 1"),
    ("unet.model_channels", 40, "a multiple of 32"),
    ("unet.model_channels", ..., "unet.model_channels: this key is missing"),
    ("unet.num_heads_channels", 32, "nearest: num_head_channels"),
    ("unet.num_head_channels", 24, "a divisor of 32"),
    ("unet.num_head_channels", 0, "a positive integer"),
    ("unet.channel_mult", [1, -1], "a list of positive numbers"),
    ("unet.channel_mult", [], "one factor per level"),
    ("unet.image_size", 9, "divisible by 2"),
    ("unet.attention_resolutions", [2.5], "a list of positive integers"),
    ("unet.use_scale_shift_norm", 1, "true or false"),
    ("unet.dropout", 2, "a number from 0 to 1"),
    ("unet.pool", "max", "attention"),
    ("unet.out_channels", 3, "1 or, with a learned variance, 2"),
    ("unet.num_classes", 5, "5, which is unet.num_classes"),
    ("classifier.image_size", 16, "8, which is unet.image_size"),
    ("classifier.in_channels", 3, "1, which is unet.in_channels"),
    ("classifier.num_classes", 4, "null"),
    ("classifier", ..., "classifier: this key is missing"),
    ("files.unet", "../other/unet.safetensors", "the name of a file in this folder"),
    ("files.unet", "a/../../unet.safetensors", "the name of a file in this folder"),
    ("files.unet", "/etc/passwd", "the name of a file in this folder"),
    ("files.unet", "..\\unet.safetensors", "the name of a file in this folder"),
    ("files.unet", ".", "the name of a file in this folder"),
    ("files.unet", "", "the name of a file in this folder"),
    ("files.weights", "x", "unet, classifier"),
]


@pytest.mark.parametrize(("path", "value", "allowed"), BAD, ids=[f"{path}-{n}" for n, (path, _, _) in enumerate(BAD)])
def test_every_mistake_is_one_line_with_path_and_key(path: str, value: object, allowed: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(change(path, value)))
    with pytest.raises(ManifestError) as caught:
        read_model_folder(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/config.json: ")
    assert path.rpartition(".")[2] in message and allowed in message and "\n" not in message


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\xff", '{"format": "rarefy-model-v1"}', "[" * 100_000])
def test_a_file_that_is_no_configuration(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ManifestError, match=r"config\.json: ") as caught:
        read_model_folder(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_places_that_are_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"it has no config\.json"):
        read_model_folder(tmp_path)
    with pytest.raises(ManifestError, match="there is no such folder"):
        read_model_folder(tmp_path / "none")


def test_random_damage_is_refused_or_harmless() -> None:
    """Values of other types anywhere in the file: an error in one line, or a model that can be written again."""
    rng, strange = random.Random(0), [None, True, -1, 0, 10**30, 1e400, "x", "", [], {}, [[]], {"a": 1}, ["cat"] * 4]
    places = [(key,) for key in change("name", "x")]
    places += [(part, key) for part in ("unet", "classifier", "schedule", "files") for key in change("name", "x")[part]]
    for place in places * 20:
        content = change("name", "x")
        table = content if len(place) == 1 else content[place[0]]
        table[place[-1]] = rng.choice(strange)
        try:
            config_content(parse_config(content, LIBRARY.parent, "config.json"))
        except ManifestError as error:
            assert str(error).startswith("config.json: ") and "\n" not in str(error)


def test_a_model_without_classes_has_one() -> None:
    nameless = dataclasses.replace(WITHOUT_CLASSIFIER, unet=UNCONDITIONAL, class_names=())
    assert (nameless.classifier_classes, nameless.labels) == (1, ("all",))
    # Names are for a classifier to come: until then nothing can be made of a class.
    assert dataclasses.replace(nameless, class_names=("cat", "dog")).labels == ("all",)
    assert WITHOUT_CLASSIFIER.labels == ("cat", "dog", "maine coon", "Siamese")
    assert library()["adm-imagenet-64"].labels[:2] == ("0", "1")


def test_only_what_samples_an_image_counts() -> None:
    same = {"name": "x", "description": "y", "recommended_scale": 3.0, "path": Path("/z"), "files": {"unet": "a.pt"}}
    for field, value in same.items():
        assert sampling_config(dataclasses.replace(MODEL, **{field: value})) == sampling_config(MODEL)
    other = {"schedule": "linear", "class_names": (*MODEL.class_names[:3], "z"), "classifier": None, "prediction": "v"}
    for field, value in other.items():
        assert sampling_config(dataclasses.replace(MODEL, **{field: value})) != sampling_config(MODEL)


def test_only_the_library_may_share_files(tmp_path: Path) -> None:
    assert library()["fashion-mnist-28-ect"].file("unet").is_file()
    path = write_model(tmp_path / "tiny")
    assert not read_model_folder(path).embedded and library()["fashion-mnist-28"].embedded
