"""Features of many shards: each kept by content once it is done, spread over a Ray cluster where one is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray

from rarefy.audit.features.cache import cached, recall
from rarefy.audit.features.extractors import DEFAULT_BATCH, Extractor, Images, cache_key, extract_outputs, kept_outputs
from rarefy.audit.features.fidelity import Features
from rarefy.generate.cluster import Request, connected

Step = Callable[[int, int], None]


def outputs_of_parts(
    parts: Sequence[Images], extractor: Extractor, device: str, ray_address: str | None, step: Step
) -> Features:
    """Outputs of the images of each shard, in order, as one array (N, dim + logits).

    A part that is done is in the cache, so an audit that was cut off goes on where it stopped. With ``ray_address`` the
    parts that the cache does not hold are Ray tasks on that cluster, each on one GPU where device is a GPU. Raises
    DeviceError where the cluster does not answer.
    """
    found: dict[int, Features] = {}
    missing = []
    for place, part in enumerate(parts):
        stored = recall(cache_key(extractor, part))
        if stored is None:
            missing.append(place)
        else:
            found[place] = np.asarray(stored["outputs"], np.float32)
    total, done = sum(len(part) for part in parts), sum(len(array) for array in found.values())
    if missing and ray_address is not None:
        for place, outputs in _on_cluster([(place, parts[place]) for place in missing], extractor, device, ray_address):
            found[place], done = _keep(extractor, parts[place], outputs), done + len(outputs)
            step(done, total)
        missing = []
    for place in missing:
        found[place] = kept_outputs(parts[place], extractor, device, DEFAULT_BATCH, _after(done, total, step))
        done += len(parts[place])
    return np.concatenate([found[place] for place in range(len(parts))])


def _after(before: int, total: int, step: Step) -> Step:
    return lambda now, _: step(before + now, total)


def _keep(extractor: Extractor, images: Images, outputs: Features) -> Features:
    return np.asarray(cached(cache_key(extractor, images), lambda: {"outputs": outputs})["outputs"], np.float32)


def _on_cluster(
    parts: Sequence[tuple[int, Images]], extractor: Extractor, device: str, address: str
) -> Iterator[tuple[int, Features]]:
    """(place, outputs) of each part as its task ends, in any order."""
    gpus = 1 if device.startswith("cuda") else 0
    with connected(Request(1, gpus, 1, len(parts)), address):
        task: Any = ray.remote(num_cpus=1, num_gpus=gpus)(extract_outputs)
        shared = ray.put(extractor)
        waiting = {task.remote(ray.put(images), shared, device): place for place, images in parts}
        while waiting:
            ready, _ = ray.wait(list(waiting))
            yield waiting.pop(ready[0]), ray.get(ready[0])
