"""Put trained networks and reference images into the package: the last step of ``make weights``.

python -m benchmarks.quality.embed --unet DIR --classifier DIR ... [--data FOLDER] [--note TEXT]

Networks that are not named stay as they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from rarefy.images import LabelledImages, load_images
from rarefy.models.folder import LIBRARY, find_model
from rarefy.models.folder import provenance as read_provenance

FOLDER = "fashion-mnist-28"
TRAIN_IMAGES_A_CLASS = 1000
RECIPES = {
    "unet": "fashion-mnist-28-diffusion.toml",
    "unet-uncond": "fashion-mnist-28-uncond-diffusion.toml",
    "classifier": "fashion-mnist-28-classifier.toml",
    "classifier-ect": "fashion-mnist-28-classifier-ect.toml",
    "judge": "fashion-mnist-28-judge.toml",
}


def main() -> None:
    """Copy the networks' EMA weights and provenance, and write the two reference sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, recipe in RECIPES.items():
        parser.add_argument(f"--{name}", type=Path, help=f"output folder of `rarefy train` with {recipe}")
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of the IDX files")
    parser.add_argument("--note", help="what the conditional U-Net's provenance does not say by itself")
    args = parser.parse_args()
    folder = LIBRARY / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    provenance = read_provenance(find_model(FOLDER)) if (folder / "provenance.json").exists() else {}
    for name in RECIPES:
        source = getattr(args, name.replace("-", "_"))
        if source is None:
            continue
        shutil.copyfile(source / "weights.safetensors", folder / f"{name}.safetensors")
        provenance[name] = json.loads((source / "provenance.json").read_text())
    if args.note:
        provenance["unet"]["note"] = args.note
    test = load_images(args.data, 28, 1, "test")
    train = first_of_each_class(load_images(args.data, 28, 1, "train"), TRAIN_IMAGES_A_CLASS)
    provenance["reference"] = {}
    for split, images in (("test", test), ("train", train)):
        np.savez_compressed(
            folder / f"reference-{split}.npz",
            images=images.images,
            labels=images.labels,
            class_names=np.array(find_model(FOLDER).class_names),
        )
        provenance["reference"][split] = {"images": len(images), "sha256": images.sha256()}
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")


def first_of_each_class(data: LabelledImages, count: int) -> LabelledImages:
    """The first ``count`` images of every class, in the data set's order."""
    rows = np.sort(np.concatenate([np.flatnonzero(data.labels == k)[:count] for k in np.unique(data.labels)]))
    return LabelledImages(data.images[rows], data.labels[rows], data.class_names)


if __name__ == "__main__":
    main()
