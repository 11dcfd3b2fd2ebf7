"""The parts of a model folder's ``config.json`` must agree: sizes, channels and numbers of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rarefy.errors import ManifestError, bad
from rarefy.models.config import NetworkSpec
from rarefy.models.config_file import Json

if TYPE_CHECKING:
    from rarefy.models.folder import ModelFolder


def check_agreement(folder: ModelFolder, config: Json) -> None:
    """Raise ManifestError, which names the key, if parts of a ``config.json`` contradict each other."""
    unet, classifier = folder.unet, folder.classifier
    sizes = [("image_size", config["image_size"], unet.image_size), ("channels", config["channels"], unet.in_channels)]
    for key, value, expected in sizes:
        if value != expected or isinstance(value, bool):
            of_unet = "unet.image_size" if key == "image_size" else "unet.in_channels"
            raise ManifestError(bad(key, value, f"{expected}, which is {of_unet}"))
    if folder.channels not in (1, 3):
        raise ManifestError(bad("channels", folder.channels, "1 (grey) or 3 (colour)"))
    if unet.out_channels not in (folder.channels, 2 * folder.channels):
        allowed = f"{folder.channels} or, with a learned variance, {2 * folder.channels}"
        raise ManifestError(bad("unet.out_channels", unet.out_channels, allowed))
    if classifier is not None:
        _check_classifier(classifier, unet)
    named = folder.classifier_classes if classifier is not None else folder.num_classes
    if folder.class_names and named is not None and len(folder.class_names) != named:
        allowed = f"{named}, the number of classes of the {'U-Net' if classifier is None else 'classifier'}"
        raise ManifestError(bad("class_names", f"{len(folder.class_names)} names", allowed))
    if folder.wordnet_ids and len(folder.wordnet_ids) != named:
        raise ManifestError(bad("wordnet_ids", f"{len(folder.wordnet_ids)} ids", f"{named}, one per class"))


def _check_classifier(classifier: NetworkSpec, unet: NetworkSpec) -> None:
    for key in ("image_size", "in_channels"):
        if getattr(classifier, key) != getattr(unet, key):
            allowed = f"{getattr(unet, key)}, which is unet.{key}"
            raise ManifestError(bad(f"classifier.{key}", getattr(classifier, key), allowed))
    if unet.num_classes is not None and classifier.out_channels != unet.num_classes:
        allowed = f"{unet.num_classes}, which is unet.num_classes"
        raise ManifestError(bad("classifier.out_channels", classifier.out_channels, allowed))
    if classifier.num_classes is not None:
        allowed = "null: a classifier is not given the class"
        raise ManifestError(bad("classifier.num_classes", classifier.num_classes, allowed))
