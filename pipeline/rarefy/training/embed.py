"""Copies trained networks and the reference images into the package: the last step of ``make weights``.

    python -m rarefy.training.embed --unet DIR --classifier DIR ... [--data FOLDER]

Networks that are not named stay unchanged.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from rarefy.images import LabelledImages, load_images
from rarefy.models.folder import find_model, provenance

TRAIN_IMAGES_PER_CLASS = 1000
NETWORKS = ("unet", "unet-uncond", "classifier", "classifier-ect", "judge")


def main() -> None:
    """Copy the EMA weights with their provenance, and write both sets of real images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in NETWORKS:
        parser.add_argument(f"--{name}", type=Path, help="output folder of `rarefy train`")
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of the IDX files")
    arguments = vars(parser.parse_args())
    model = find_model("fashion-mnist-28")
    record = provenance(model)
    for name in NETWORKS:
        if source := arguments[name.replace("-", "_")]:
            shutil.copyfile(source / "weights.safetensors", model.path / f"{name}.safetensors")
            record[name] = json.loads((source / "provenance.json").read_text()) | {"data": arguments["data"]}
    train = first_per_class(load_images(arguments["data"], 28, 1, "train"), TRAIN_IMAGES_PER_CLASS)
    record["reference"] = {}
    for split, data in (("test", load_images(arguments["data"], 28, 1, "test")), ("train", train)):
        names, path = np.array(model.class_names), model.path / f"reference-{split}.npz"
        np.savez_compressed(path, images=data.images, labels=data.labels, class_names=names)
        record["reference"][split] = {"images": len(data), "sha256": data.sha256()}
    (model.path / "provenance.json").write_text(json.dumps(record, indent=1) + "\n")


def first_per_class(data: LabelledImages, count: int) -> LabelledImages:
    """The first ``count`` images of each class, in the data set's order."""
    rows = np.sort(np.concatenate([np.flatnonzero(data.labels == k)[:count] for k in np.unique(data.labels)]))
    return data.take(rows)


if __name__ == "__main__":
    main()
