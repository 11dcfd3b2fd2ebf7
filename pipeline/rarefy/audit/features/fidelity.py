"""The only door to torch-fidelity: its matrix functions with every option given, and its networks."""

from __future__ import annotations

import hashlib
import importlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rarefy.audit.metrics.bootstrap import chosen_rows
from rarefy.errors import CheckpointError, bad

Features = NDArray[np.float32]
Doubles = NDArray[np.float64]
Matrix = NDArray[np.floating[Any]]

KID_SUBSETS = 50
KID_SUBSET_SIZE = 1000
KERNEL_ROWS = 2000  # of each side, for the influences on KID
SEED = 2020
PRC_BLOCK = 2048
ISC_SPLITS = 10
LOGITS_LAYER = "logits_unbiased"
HUB = "dinov2-"  # code and weights both come from torch.hub
TORCHSCRIPT = "clip-"  # published as TorchScript, which torch.load does not take
CHUNK = 4096  # rows held in float64 at a time
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
    """Frechet distance of the Gaussians fitted to two (N, D) feature matrices (Heusel et al. 2017).

    Sets of fewer rows than columns are first turned into the space that they span, where the distance is the same and
    its D x D eigenvalues are cheap.
    """
    fid = load_module("metric_fid")
    first, second = (dict(zip(("mu", "sigma"), _gaussian(rows), strict=True)) for rows in _spanned(generated, real))
    return float(fid.fid_statistics_to_metric(first, second, verbose=False)[fid.KEY_METRIC_FID])


def frechet_influences(generated: Features, real: Features) -> tuple[Doubles, Doubles]:
    """How much each row of either side moves the Frechet distance, to first order, per share of its weight: (N,), (M,).

    With T = C2^1/2 (C2^1/2 C1 C2^1/2)^-1/2 C2^1/2, the optimal transport of one Gaussian to the other, the derivative
    towards a row x is 2 (m1 - m2).(x - m1) + (x - m1)'(I - T)(x - m1), less its mean.
    """
    rows = _spanned(generated, real)
    (mean_1, cov_1), (mean_2, cov_2) = (_gaussian(side) for side in rows)
    sides = ((rows[0], mean_1, mean_2, _transport(cov_1, cov_2)), (rows[1], mean_2, mean_1, _transport(cov_2, cov_1)))
    found = []
    for side, own, other, transport in sides:
        moves = np.empty(len(side))
        for start in range(0, len(side), CHUNK):
            x = side[start : start + CHUNK] - own
            moves[start : start + CHUNK] = 2 * x @ (own - other) + (x * (x - x @ transport)).sum(axis=1)
        found.append(moves - moves.mean())
    return found[0], found[1]


def kernel_distances(generated: Features, real: Features) -> Doubles:
    """KID (Binkowski et al. 2018) of each random subset, drawn as torch-fidelity draws them: (50,)."""
    kid = load_module("metric_kid")
    generator, size = np.random.RandomState(SEED), min(KID_SUBSET_SIZE, len(generated), len(real))
    options = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
    found = np.empty(KID_SUBSETS)
    for subset in range(KID_SUBSETS):  # a subset at a time in float64: never the whole matrix twice over
        rows = [side[generator.choice(len(side), size, replace=False)].astype(np.float64) for side in (generated, real)]
        found[subset] = kid.kernel_mmd(*rows, **options, kid_kernel_poly_coef0=1)
    return found


def kernel_influences(generated: Features, real: Features) -> tuple[Doubles, Doubles]:
    """How much each row of either side moves KID, to first order, per share of its weight: (N,), (M,).

    Twice the mean kernel with its own side less that with the other's; of a side of more than 2,000 rows, with so many
    of them.
    """
    sides, found = (generated, real), []
    chosen = [chosen_rows(len(side), KERNEL_ROWS) for side in sides]
    for own, other in ((0, 1), (1, 0)):
        apart = _kernel_sums(sides[own], sides[other][chosen[other]]) / len(chosen[other])
        among = _kernel_sums(sides[own], sides[own][chosen[own]])
        counts = np.full(len(among), float(len(chosen[own])))
        # A row is no pair with itself.
        among[chosen[own]] -= _kernel(np.einsum("nd,nd->n", *(sides[own][chosen[own]],) * 2), sides[own].shape[1])
        counts[chosen[own]] -= 1
        found.append(2 * (among / np.maximum(counts, 1) - apart))
    return found[0], found[1]


def inception_scores(logits: Features) -> Doubles:
    """The Inception Score (Salimans et al. 2016) of each of ten shuffled parts of logits (N, classes)."""
    isc = load_module("metric_isc")
    shuffled, rows = logits[np.random.RandomState(SEED).permutation(len(logits))], len(logits)
    splits = min(ISC_SPLITS, rows)
    parts = [shuffled[i * rows // splits : (i + 1) * rows // splits] for i in range(splits)]
    scores = [isc.isc_features_to_metric(_tensor(part), 1, False) for part in parts]
    return np.array([score[isc.KEY_METRIC_ISC_MEAN] for score in scores])


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


@dataclass(frozen=True, eq=False)
class Registered:
    """One of torch-fidelity's networks: its layer for distances, that of its logits (or None), a hash."""

    network: torch.nn.Module
    layer: str
    logits: str | None
    sha256: str


def registered_names() -> tuple[str, ...]:
    """torch-fidelity's extractors, and those that the user has registered with it in this process."""
    return tuple(load_module("registry").FEATURE_EXTRACTORS_REGISTRY)


def load_registered(name: str, weights: str | None) -> Registered:
    """A registered extractor by name, its weights from a file, or downloaded by torch-fidelity where that is None.

    Raises CheckpointError where the file holds something else, or nothing can be downloaded.
    """
    kind = load_module("registry").FEATURE_EXTRACTORS_REGISTRY[name]
    layer = kind.get_default_feature_layer_for_metric("fid")
    logits = LOGITS_LAYER if LOGITS_LAYER in kind.get_provided_features_list() else None
    layers = [layer] if logits is None else [layer, logits]
    try:
        if weights is None:
            network = kind(name, layers)
            return Registered(network, layer, logits, _state_sha256(network))
        data = Path(weights).read_bytes()
        if not name.startswith(TORCHSCRIPT):
            # torch-fidelity unpickles the file without limits; what passes here holds tensors and nothing else.
            torch.load(weights, map_location="cpu", weights_only=True)
        network = kind(name, layers, feature_extractor_weights_path=weights)
        return Registered(network, layer, logits, hashlib.sha256(data).hexdigest())
    except NotImplementedError:
        raise CheckpointError(bad("extractor weights", weights, f"taken for {name}: it is downloaded only")) from None
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "put torch.hub's copy into its cache" if name.startswith(HUB) else "give a path"
        wrong = f"{weights} is no weights file of {name}" if weights else f"{name} cannot be downloaded, {hint}"
        raise CheckpointError(f"extractor weights: {wrong} ({cause})") from error


def _state_sha256(network: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _kernel(products: Matrix, dim: int) -> Doubles:
    return np.asarray((products.astype(np.float64) / dim + 1) ** 3)


def _kernel_sums(rows: Features, others: Features) -> Doubles:
    """(N,) sums of each row's kernel with the others."""
    parts = (rows[start : start + CHUNK] @ others.T for start in range(0, len(rows), CHUNK))
    return np.concatenate([_kernel(part, rows.shape[1]).sum(axis=1) for part in parts])


def _tensor(features: Features) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))


def _gaussian(rows: Matrix) -> tuple[Doubles, Doubles]:
    """Mean and covariance in float64, some rows at a time."""
    mean: Doubles = np.asarray(np.mean(rows, axis=0, dtype=np.float64))
    total = np.zeros((rows.shape[1], rows.shape[1]))
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK] - mean
        total += part.T @ part
    return mean, total / (len(rows) - 1)


def _spanned(first: Features, second: Features) -> tuple[Matrix, Matrix]:
    """Both sets in an orthonormal basis of the space they span, where that is smaller than their features."""
    if len(first) + len(second) >= first.shape[1]:
        return first, second
    rows = np.concatenate([first, second]).astype(np.float64)
    rows -= rows.mean(axis=0)
    basis = np.linalg.qr(rows.T)[0]
    turned = rows @ basis
    return turned[: len(first)], turned[len(first) :]


def _transport(source: Doubles, target: Doubles) -> Doubles:
    root = _power(target, 0.5)
    return np.asarray(root @ _power(root @ source @ root, -0.5) @ root)


def _power(matrix: Doubles, exponent: float) -> Doubles:
    """A power of a symmetric positive matrix, zero where its eigenvalues are nothing but rounding."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    real = values > values[-1] * 1e-10
    powers = np.where(real, np.where(real, values, 1.0) ** exponent, 0.0)
    return np.asarray((vectors * powers) @ vectors.T)
