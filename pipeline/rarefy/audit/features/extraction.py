"""Features of many shards: cached shard by shard, and computed on a Ray cluster if one is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray

from rarefy.audit.features.cache import keep_arrays, recall
from rarefy.audit.features.extractors import Extractor, Features, Images, Step, cache_key, extract_outputs
from rarefy.generate.cluster import connected
from rarefy.generate.fit import Request


def outputs_of_parts(
    parts: Sequence[Images],
    extractor: Extractor,
    device: str,
    ray_address: str | None,
    step: Step,
    keep: bool = True,
) -> Features:
    """Outputs for the images of each part (a shard), in order, as one array (N, dim + logits).

    Finished parts are cached, so an interrupted audit resumes where it stopped. With ``ray_address`` the missing parts
    are computed as Ray tasks on that cluster, with one GPU each if device is a GPU. Raises DeviceError if the cluster
    does not answer. keep: whether to cache what was computed; without it, only what is cached already is used.
    """
    keys = [cache_key(extractor, part) for part in parts]
    outputs = {place: stored["outputs"] for place, key in enumerate(keys) if (stored := recall(key)) is not None}
    missing = [(place, part) for place, part in enumerate(parts) if place not in outputs]
    done, total = sum(map(len, outputs.values())), sum(map(len, parts))
    if ray_address is not None and missing:
        computed = _on_cluster(missing, extractor, device, ray_address)
    else:
        computed = (
            (place, extract_outputs(part, extractor, device, step=lambda now, _: step(done + now, total)))
            for place, part in missing
        )
    for place, result in computed:
        if keep:
            keep_arrays(keys[place], {"outputs": result})
        outputs[place], done = result, done + len(result)
        if ray_address is not None:
            step(done, total)
    return np.concatenate([np.asarray(outputs[place], np.float32) for place in range(len(parts))])


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
