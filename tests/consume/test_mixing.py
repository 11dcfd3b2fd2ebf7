from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch

from rarefy.consume import MixedImages, RareImages, RealImages, mix
from rarefy.consume.mixing import find_class, needed
from rarefy.errors import DataError

COAT, SHIRT, BOOT = 4, 0, 9


def counts(mixed: MixedImages, epoch: int = 0) -> Counter[tuple[bool, int]]:
    """Images of an epoch by (generated, class id)."""
    return Counter((mixed.is_rare((epoch, place)), mixed[epoch, place][1]) for place in range(len(mixed)))


def rare_keys(mixed: MixedImages, epoch: int) -> list[str]:
    return [mixed.key((epoch, place)) for place in range(mixed.real_count, len(mixed))]


def test_needed_is_the_count_whose_fraction_is_nearest() -> None:
    for real in (1, 7, 24, 1000):
        for ratio in (0, 0.01, 0.3, 0.5, 0.77, 0.9):
            exact = ratio * real / (1 - ratio)
            assert abs(needed(ratio, real, "ratio") - exact) <= 0.5 + 1e-9
    assert needed(0.5, 24, "ratio") == 24 and needed(0.3, 24, "ratio") == 10


def test_an_epoch_has_every_real_image_once_and_the_ratio_exactly(out: Path, photos: Path) -> None:
    rare = RareImages(out, accepted=False)
    mixed = mix(RealImages(photos, rare), rare, ratio=0.3)
    assert (len(mixed), mixed.real_count, mixed.rare_count) == (34, 24, 10)
    for epoch in range(3):
        found = counts(mixed, epoch)
        assert {name: n for (generated, name), n in found.items() if not generated} == {0: 8, 4: 12, 8: 4}
        assert sum(n for (generated, _), n in found.items() if generated) == 10
    assert "24 real and 10 generated images per epoch (29.4% generated; each of 40 is used 0.25 times" in str(mixed)


def test_epochs_take_turns_until_every_generated_image_was_used(out: Path, photos: Path) -> None:
    mixed = mix(photos, RareImages(out, accepted=False), ratio=0.3)
    keys = [key for epoch in range(4) for key in rare_keys(mixed, epoch)]
    assert len(keys) == 40 == len(set(keys))
    assert rare_keys(mixed, 0) == rare_keys(mix(photos, RareImages(out, accepted=False), ratio=0.3), 0)
    assert rare_keys(mixed, 0) != rare_keys(mix(photos, RareImages(out, accepted=False), ratio=0.3, seed=1), 0)
    assert mixed[0, 30][1] == mixed[30][1] and mixed.key(30) == mixed.key((0, 30))


def test_an_image_is_that_of_its_key(out: Path, photos: Path) -> None:
    rare = RareImages(out, accepted=False)
    mixed, by_key = mix(photos, rare, ratio=0.3), {rare.key(place): rare[place] for place in range(len(rare))}
    for place in range(mixed.real_count, len(mixed)):
        image, label = mixed[2, place]
        assert torch.equal(image, by_key[mixed.key((2, place))][0]) and label == by_key[mixed.key((2, place))][1]
    assert mixed.key(0) == RealImages(photos, rare).key(0)


def test_a_ratio_by_class_counts_within_the_class(out: Path, photos: Path) -> None:
    mixed = mix(photos, RareImages(out, accepted=False), per_class={"Coat": 0.5, "t-shirt/top": 0.2})
    for epoch in range(3):
        found = counts(mixed, epoch)
        assert {name: n for (generated, name), n in found.items() if generated} == {COAT: 12, SHIRT: 2}
        assert {name: n for (generated, name), n in found.items() if not generated} == {COAT: 12, SHIRT: 8, 8: 4}


def test_without_ratio_everything_is_used_once(out: Path, photos: Path) -> None:
    mixed = mix(photos, RareImages(out), per_class=None)
    assert sorted(rare_keys(mixed, 1)) == [mixed.rare.key(place) for place in range(len(mixed.rare))]
    assert len(mix(photos, RareImages(out), ratio=0)) == 24 == len(mix(photos, RareImages(out), per_class={}))


def test_images_repeat_only_as_often_as_allowed(out: Path, photos: Path) -> None:
    rare = RareImages(out, accepted=False)
    with pytest.raises(DataError) as caught:
        mix(photos, rare, ratio=0.8)
    message = (
        "ratio: 0.8 needs 96 generated images for 24 real ones, and there are 40; use at most 0.625 or allow repeat=3"
    )
    assert str(caught.value) == message
    used = Counter(rare_keys(mix(photos, rare, ratio=0.8, repeat=3), 5))
    assert used.total() == 96 and set(used.values()) == {2, 3}
    assert len(mix(photos, rare, ratio=0.625)) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1}, "ratio: 1 is not a fraction of generated images from 0 to below 1"),
        ({"ratio": -0.1}, "ratio: -0.1 is not"),
        ({"ratio": float("nan")}, "ratio: nan is not"),
        ({"ratio": True}, "ratio: True is not"),
        ({"ratio": "0.3"}, "ratio: '0.3' is not"),
        ({"ratio": 0.3, "per_class": {"coat": 0.3}}, "per_class: cannot be used together with ratio"),
        ({"ratio": 0.3, "repeat": 0}, "repeat: 0 is not a whole number from 1"),
        ({"per_class": {"cote": 0.3}}, "per_class: 'cote' is not a class of this data set (nearest: coat)"),
        ({"per_class": {10: 0.3}}, "per_class: 10 is not a class of this data set"),
        ({"per_class": {"coat": 1.5}}, "per_class.coat: 1.5 is not a fraction"),
        ({"per_class": {"coat": 0.1, 4: 0.1}}, "per_class.4: the class 'coat' was given twice"),
        ({"per_class": {"coat": 0.1, "Coat": 0.1}}, "per_class.Coat: the class 'coat' was given twice"),
        ({"per_class": {"ankle boot": 0.1}}, "per_class.ankle boot: there is no real image of this class"),
        (
            {"per_class": {"bag": 0.5}},
            "per_class.bag: 0.5 needs 4 generated images for 4 real ones, and there are 0",
        ),
        (
            {"per_class": {"coat": 0.6}},
            "per_class.coat: 0.6 needs 18 generated images for 12 real ones, and there",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused(out: Path, photos: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        mix(photos, RareImages(out, accepted=False), **options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_class_is_found_by_name_or_id_and_a_name_of_two_classes_is_refused() -> None:
    names = ("crane", "T-shirt/top", "Crane", "7")
    assert [find_class(name, names) for name in ("t_shirt top", "007", 7 - 5, 0)] == [1, 3, 2, 0]
    with pytest.raises(DataError, match="'crane' is not the name of one class: 0 and 2 have it; give the class id"):
        find_class("crane", names)


def test_a_fingerprint_tells_mixtures_apart_and_survives_pickling(out: Path, photos: Path) -> None:
    rare = RareImages(out)
    mixtures = [
        mix(photos, rare, ratio=0.3), mix(photos, rare, ratio=0.1), mix(photos, rare, ratio=0.3, seed=1),
        mix(photos, RareImages(out, "confidence < 0.9"), ratio=0.3), mix(photos, rare, per_class={"coat": 0.3}),
    ]  # fmt: skip
    prints = [mixed.fingerprint() for mixed in mixtures]
    assert len(set(prints)) == len(prints)
    assert [pickle.loads(pickle.dumps(mixed)).fingerprint() for mixed in mixtures] == prints
