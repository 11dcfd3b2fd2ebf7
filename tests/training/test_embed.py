"""The last step of ``make weights``."""

from __future__ import annotations

from rarefy.audit.inputs.reference import read_embedded
from rarefy.models.folder import find_model
from rarefy.training.embed import first_per_class


def test_embedding_takes_the_first_images_of_each_class() -> None:
    images = read_embedded(find_model("fashion-mnist-28"), "reference")
    kept = first_per_class(images, 3)
    assert sorted(kept.labels.tolist()) == sorted([*range(10)] * 3)
    assert (kept.images[kept.labels == 4] == images.images[images.labels == 4][:3]).all()
