"""Names of classes: as folders, as labels and as YAML."""

from __future__ import annotations

import unicodedata

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rarefy.export.imagefolder import folder_names
from rarefy.images.names import fold
from rarefy.shards.features import class_labels, shard_features, yaml_string

NAMES = st.lists(st.one_of(st.text(min_size=1, max_size=6), st.sampled_from(["a", "A", "a_1", "a (1)", "/", "é", "é"])))


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["t-shirt/top", "ankle boot"], ["t-shirt_top", "ankle boot"]),
        (["crane", "dog", "crane"], ["crane_0", "dog", "crane_2"]),
        (["Cat", "cat"], ["Cat_0", "cat_1"]),
        (["..", ".x", "x.", 'a:b?"', ""], ["__", "_x", "x_", "a_b__", "_"]),
        (["a", "a", "a_1"], ["0_a", "1_a", "2_a_1"]),
        (["é" * 200], ["é" * 100]),
    ],
)
def test_folders(names: list[str], folders: list[str]) -> None:
    assert folder_names(names) == folders


@settings(max_examples=40)
@given(NAMES)
def test_folders_are_safe_and_distinct(names: list[str]) -> None:
    folders = folder_names(names)
    assert len({unicodedata.normalize("NFD", name).casefold() for name in folders}) == len(names) == len(folders)
    for name in folders:
        assert name not in ("", ".", "..") and not set(name) & set('\0/\\:*?"<>|\n')
        assert not name.startswith(".") and len(name.encode()) < 255


def test_rarefy_reads_them_as_the_same_classes() -> None:
    names = ["t-shirt/top", "ankle boot", "7"]
    assert [fold(name) for name in folder_names(names)] == [fold(name) for name in names]


@settings(max_examples=40)
@given(NAMES)
def test_labels_are_distinct(names: list[str]) -> None:
    labels = class_labels(names)
    assert len(set(labels)) == len(names)
    assert all(label.startswith(name) for label, name in zip(labels, names, strict=True))
    if len(set(names)) == len(names):
        assert labels == tuple(names)


@settings(max_examples=40)
@given(st.text())
def test_yaml_strings(text: str) -> None:
    assert yaml.safe_load(yaml_string(text)) == text


def test_features_are_yaml() -> None:
    features = yaml.safe_load(shard_features(["yes: no", "😀", "yes: no"]))
    assert features[0]["dtype"]["class_label"]["names"] == {"0": "yes: no (0)", "1": "😀", "2": "yes: no (2)"}
    assert [entry["name"] for entry in features] == ["cls", "json", "png", "__key__", "__url__"]
