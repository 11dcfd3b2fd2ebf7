"""How many images of a class are needed: equal training on fewer and fewer. ``python -m benchmarks.quality.needed``

The networks that ``rarefy init`` chooses for a CPU are trained on 20, 100, 500 and 1,000 images of each class of
Fashion-MNIST, at 14 px, and always see the same number of images. Measured on 1,000 images that no network saw:
recall (Kynkäänniemi et al. 2019, k = 3) and Frechet distance in EfficientNet-lite0 features; copies: the fraction of
generated images that are closer to a training image than 99% of the unseen images are to any of all 10,000 images;
accuracy: of a noise-aware classifier, without noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rarefy.audit.features.extractors import Features, extract_outputs, load_extractor
from rarefy.audit.inputs.reference import read_embedded
from rarefy.audit.metrics.distances import frechet_distance, precision_recall
from rarefy.diffusion.schedule import make_schedule
from rarefy.images import LabelledImages
from rarefy.models.adm import ADM
from rarefy.models.folder import ModelFolder, find_model
from rarefy.models.networks import build_classifier, build_unet
from rarefy.project.networks import CPU, classifier_config, unet_config
from rarefy.training.data import TrainingSet, make_batch
from rarefy.training.embed import first_per_class
from rarefy.training.held_out import accuracy_at
from rarefy.training.losses import ClassifierLoss, HybridLoss
from rarefy.training.samples import draw_images
from rarefy.training.settings import TrainSettings
from rarefy.training.state import start
from rarefy.training.step import LossFunction, train_step

DEVICE, SIZE, CLASSES, GENERATED = torch.device("cpu"), 14, 10, 1000
SCHEDULE = make_schedule("cosine", 1000)
MODEL = ModelFolder(
    "needed", "", unet_config(SIZE, 1, CLASSES, CPU), classifier_config(SIZE, 1, CLASSES, CPU), "cosine", 1.0
)


def halved(role: str) -> LabelledImages:
    """The embedded images at half their size: means of 2 x 2 pixels."""
    data = read_embedded(find_model("fashion-mnist-28"), role)
    pixels = data.images.reshape(-1, 1, SIZE, 2, SIZE, 2).mean((3, 5)).round().astype(np.uint8)
    return LabelledImages(pixels, data.labels, data.class_names)


def trained(network: ADM, loss: LossFunction, data: LabelledImages, settings: TrainSettings) -> ADM:
    images, state = TrainingSet.whole(data), start(network, settings, DEVICE, Path("no-checkpoint"))
    while state.step < settings.steps:
        train_step(state, loss, make_batch(images, state.step, settings, DEVICE), settings)
    network.load_state_dict(state.ema)
    return network.eval().requires_grad_(False)


def generated(unet: ADM) -> NDArray[np.uint8]:
    """As many images of each class, in 20 deterministic steps."""
    return torch.cat(list(draw_images(unet, MODEL, torch.arange(GENERATED) % CLASSES))).numpy()


def nearest(features: Features, others: Features) -> NDArray[np.float32]:
    return np.asarray(torch.cdist(torch.from_numpy(features), torch.from_numpy(others)).amin(1).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, help="that each network sees (default 100,000)")
    parser.add_argument("--per-class", type=int, nargs="+", default=[20, 100, 500, 1000])
    options = parser.parse_args()
    extractor, everything, unseen = load_extractor(), halved("held_out"), first_per_class(halved("reference"), 100)
    real, all_train = (extract_outputs(data.images, extractor) for data in (unseen, everything))
    close = np.quantile(nearest(real, all_train), 0.01)
    print("images per class | recall | Frechet distance | copies | accuracy\n--: | --: | --: | --: | --:")
    for count in options.per_class:
        data = first_per_class(everything, count)
        settings = TrainSettings(options.images, lr=5e-4, ema=0.998)
        unet = trained(build_unet(MODEL.unet), HybridLoss(SCHEDULE, DEVICE), data, settings)
        settings = TrainSettings(options.images // 4, lr=1e-3, weight_decay=0.05, decay=0.8, ema=0.99, flip=True)
        guide = trained(build_classifier(MODEL.classifier), ClassifierLoss(SCHEDULE, DEVICE), data, settings)
        features = extract_outputs(generated(unet), extractor)
        copies = (nearest(features, extract_outputs(data.images, extractor)) < close).mean()
        distance, recall = frechet_distance(features, real), precision_recall(features, real, 3)[1]
        accuracy = accuracy_at(guide, unseen, SCHEDULE, 0)
        print(f"{count:,} | {recall:.2f} | {distance:.0f} | {copies:.1%} | {accuracy:.1%}", flush=True)


if __name__ == "__main__":
    main()
