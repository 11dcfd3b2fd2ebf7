"""Classes are matched by name: spellings that are the same, those that are not, and what a refusal says."""

from __future__ import annotations

import itertools

import pytest

from rarefy.errors import DataError
from rarefy.images import match_classes
from rarefy.images.names import natural_order
from rarefy.models.folder import find_model

FASHION = find_model("fashion-mnist-28").class_names


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("T-shirt_top", "t-shirt/top"),
        ("ankle_boot", "Ankle boot"),
        ("ANKLEBOOT", "ankle-boot"),
        ("007", "7"),
        ("7", "0007"),
        ("tench", "tench, Tinca tinca"),
        ("Tinca_tinca", "tench, Tinca tinca"),
        ("tench, Tinca tinca", "Tinca tinca"),
        ("stra\u00dfe", "STRASSE"),
        ("Caf\u00e9", "cafe\u0301"),
    ],
)
def test_equal_spellings(ours: str, theirs: str) -> None:
    names = ["other", theirs, "another"] if not theirs.isdigit() else ["99", theirs, "100"]
    assert match_classes([ours], names) == [1]


@pytest.mark.parametrize("ours", ["dresses", "dres", "1_0", "11", "-1", "", "sho"])
def test_no_other_spelling_matches(ours: str) -> None:
    with pytest.raises(DataError, match="not in the model"):
        match_classes([ours], FASHION)


def test_the_order_never_decides() -> None:
    for names in itertools.islice(itertools.permutations(FASHION), 0, 3_000_000, 100_000):
        assert [FASHION[class_id] for class_id in match_classes(names, FASHION)] == list(names)


def test_numbers_are_names_first_and_ids_otherwise() -> None:
    assert match_classes(["10", "002"], ["10", "2", "0"]) == [0, 1]
    assert match_classes(["0", "09"], FASHION) == [0, 9]
    with pytest.raises(DataError, match="'10' is not in the model"):
        match_classes(["10"], FASHION)
    with pytest.raises(DataError, match="'1' is not in the model"):
        match_classes(["1"], ["10", "2", "0"])


def test_wordnet_ids_match_alone_or_before_a_name() -> None:
    wordnet = ("n02012849", "n03126707", "n01440764")
    names = ("crane", "crane", "tench, Tinca tinca")
    assert match_classes(["n01440764", "N03126707-crane", "n02012849_bird"], names, wordnet) == [2, 1, 0]
    assert match_classes(["tench"], names, wordnet) == [2]
    with pytest.raises(DataError, match="'crane' could be several"):
        match_classes(["crane"], names, wordnet)
    with pytest.raises(DataError, match="'n99999999' is not"):
        match_classes(["n99999999"], names, wordnet)


def test_a_whole_name_goes_before_a_synonym() -> None:
    assert match_classes(["maillot"], ["maillot, tank suit", "maillot"]) == [1]


def test_two_classes_of_the_data_cannot_be_one_of_the_model() -> None:
    with pytest.raises(DataError, match="'Cat', 'cat' are all the model's 'cat'"):
        match_classes(["Cat", "cat"], ["cat", "dog"])


def test_a_refusal_has_both_lists_shortened() -> None:
    with pytest.raises(DataError) as caught:
        match_classes([f"ours {n}" for n in range(30)], [f"theirs {n}" for n in range(1000)])
    text = str(caught.value)
    assert "'ours 0'" in text and "'theirs 11' and 988 more (1,000 in all)" in text
    assert "\n" not in text and len(text) < 900


def test_natural_order() -> None:
    assert sorted(["10", "2", "b", "A", "a10", "a9"], key=natural_order) == ["2", "10", "A", "a9", "a10", "b"]
