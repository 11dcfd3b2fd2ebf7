"""Features of many shards: cached shard by shard, and computed on a Ray cluster if one is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray

from rarefy.audit.features.cache import cached, recall
from rarefy.audit.features.extractors import (
    DEFAULT_BATCH,
    Extractor,
    Features,
    Images,
    cache_key,
    extract_outputs,
    kept_outputs,
)
from rarefy.generate.cluster import Request, connected

Step = Callable[[int, int], None]


def outputs_of_parts(
    parts: Sequence[Images], extractor: Extractor, device: str, ray_address: str | None, step: Step
) -> Features:
    """Outputs for the images of each part (a shard), in order, as one array (N, dim + logits).

    Finished parts are cached, so an interrupted audit resumes where it stopped. With ``ray_address`` the missing parts
    are computed as Ray tasks on that cluster, with one GPU each if device is a GPU. Raises DeviceError if the cluster
    does not answer.
    """
    outputs: dict[int, Features] = {}
    missing = []
    for place, part in enumerate(parts):
        stored = recall(cache_key(extractor, part))
        if stored is None:
            missing.append(place)
        else:
            outputs[place] = np.asarray(stored["outputs"], np.float32)
    total, done = sum(len(part) for part in parts), sum(len(array) for array in outputs.values())
    if missing and ray_address is not None:
        for place, result in _on_cluster([(place, parts[place]) for place in missing], extractor, device, ray_address):
            outputs[place], done = _keep(extractor, parts[place], result), done + len(result)
            step(done, total)
        missing = []
    for place in missing:
        outputs[place] = kept_outputs(parts[place], extractor, device, DEFAULT_BATCH, _after(done, total, step))
        done += len(parts[place])
    return np.concatenate([outputs[place] for place in range(len(parts))])


def _after(before: int, total: int, step: Step) -> Step:
    return lambda now, _: step(before + now, total)


def _keep(extractor: Extractor, images: Images, outputs: Features) -> Features:
    return np.asarray(cached(cache_key(extractor, images), lambda: {"outputs": outputs})["outputs"], np.float32)


def _on_cluster(
    parts: Sequence[tuple[int, Images]], extractor: Extractor, device: str, address: str
) -> Iterator[tuple[int, Features]]:
    """Yield (place, outputs) of each part when its task ends, in any order."""
    gpus = 1 if device.startswith("cuda") else 0
    with connected(Request(1, gpus, 1, len(parts)), address):
        task: Any = ray.remote(num_cpus=1, num_gpus=gpus)(extract_outputs)
        shared = ray.put(extractor)
        waiting = {task.remote(ray.put(images), shared, device): place for place, images in parts}
        while waiting:
            ready, _ = ray.wait(list(waiting))
            yield waiting.pop(ready[0]), ray.get(ready[0])
