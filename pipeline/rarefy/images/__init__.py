"""Labelled images as people have them: class folders, WebDataset shards, Parquet, Hugging Face folders, IDX files."""

from rarefy.images.decode import IMAGE_SUFFIXES, decode_image
from rarefy.images.inspection import inspect_images
from rarefy.images.labelled import LabelledImages, pixel_digest
from rarefy.images.loading import class_ids, load_images
from rarefy.images.names import ClassNames, match_classes
from rarefy.images.report import Inspection
from rarefy.images.sources import has_split, open_source

__all__ = [
    "IMAGE_SUFFIXES",
    "ClassNames",
    "Inspection",
    "LabelledImages",
    "class_ids",
    "decode_image",
    "has_split",
    "inspect_images",
    "load_images",
    "match_classes",
    "open_source",
    "pixel_digest",
]
