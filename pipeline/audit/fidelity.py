"""The only door to torch-fidelity: its matrix functions with every option given, and its Inception network."""

from __future__ import annotations

import hashlib
import importlib
import pickle
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import CheckpointError

Features = NDArray[np.float32]

KID_SUBSETS = 50
KID_SUBSET_SIZE = 1000
SEED = 2020
PRC_BLOCK = 2048
_NMS_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# A torch.library.Library forgets its schemas when it is collected, so the one made below has to stay referenced.
_kept_schemas: list[torch.library.Library] = []


def load_module(name: str) -> ModuleType:
    """Import ``torch_fidelity.<name>``, mending the missing torchvision operators where they are what fails.

    torchvision built for a CUDA torch, beside a CPU torch, cannot load its compiled operators and fails at import on
    the missing schema of ``nms``. Neither operator is ever called here, so declaring the schemas is enough.
    """
    try:
        return importlib.import_module(f"torch_fidelity.{name}")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error) or _kept_schemas:
            raise
    library = torch.library.Library("torchvision", "DEF")
    _kept_schemas.append(library)
    for operator in ("nms", "qnms"):
        library.define(operator + _NMS_SCHEMA)
    return importlib.import_module(f"torch_fidelity.{name}")


def frechet_distance(generated: Features, real: Features) -> float:
    """Frechet distance of the Gaussians fitted to two (N, D) feature matrices (Heusel et al. 2017)."""
    fid = load_module("metric_fid")
    first, second = (fid.fid_features_to_statistics(_tensor(rows).double()) for rows in (generated, real))
    return float(fid.fid_statistics_to_metric(first, second, verbose=False)[fid.KEY_METRIC_FID])


def kernel_distance(generated: Features, real: Features) -> tuple[float, float]:
    """KID, the unbiased cubic-kernel MMD^2 (Binkowski et al. 2018): mean and standard deviation over random subsets."""
    kid = load_module("metric_kid")
    found = kid.kid_features_to_metric(
        _tensor(generated).double(),
        _tensor(real).double(),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=min(KID_SUBSET_SIZE, len(generated), len(real)),
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
        rng_seed=SEED,
        verbose=False,
    )
    return float(found[kid.KEY_METRIC_KID_MEAN]), float(found[kid.KEY_METRIC_KID_STD])


def precision_recall(generated: Features, real: Features, k: int) -> tuple[float, float]:
    """Precision and recall of k-NN manifolds (Kynkaanniemi et al. 2019), in blocks of rows."""
    prc = load_module("metric_prc")
    found = prc.prc_features_to_metric(
        _tensor(generated),
        _tensor(real),
        prc_neighborhood=k,
        prc_batch_size=PRC_BLOCK,
        save_cpu_ram=True,
        verbose=False,
    )
    return float(found[prc.KEY_METRIC_PRECISION]), float(found[prc.KEY_METRIC_RECALL])


def load_inception(weights: Path) -> tuple[torch.nn.Module, str]:
    """FID's InceptionV3, layer pool_3 (2048 features), from a weights file; returns it with the file's sha256.

    Raises CheckpointError for a file that is missing or holds anything but those weights.
    """
    try:
        data = weights.read_bytes()
        # torch-fidelity unpickles the file without limits; what passes here holds tensors and nothing else.
        torch.load(weights, map_location="cpu", weights_only=True)
        module = load_module("feature_extractor_inceptionv3").FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        )
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"inception weights: {weights} is no FID InceptionV3 weights file ({cause})") from error
    return module, hashlib.sha256(data).hexdigest()


def _tensor(features: Features) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
