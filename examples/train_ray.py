"""Train on real and generated images with Ray Train, on two CPU workers by default.

python examples/train_ray.py out/demo photos/
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from small_classifier import accuracy, add_data_arguments, make_network, make_optimizer, open_data, train_epoch

from rarefy import consume
from rarefy.shards.store import Store


def train_worker(config: Mapping[str, Any]) -> None:
    """What each worker does. The sampler gives it its own part of every epoch, so the loader needs no preparation."""
    options = argparse.Namespace(**config)
    data, held_out = open_data(options)
    sampler = consume.EpochSampler(data, seed=0)
    loader = consume.Loader(data, options.batch_size, sampler=sampler, num_workers=options.workers)
    network = prepare_model(make_network(data))
    optimizer = make_optimizer(network)
    for epoch in range(options.epochs):
        loader.set_epoch(epoch)
        used = train_epoch(network, optimizer, loader)
        metrics = {"images": used, "accuracy": accuracy(network, held_out), "mixture": str(data)}
        loader.set_epoch(epoch + 1)
        report(metrics, {"network": network.state_dict(), "data": loader.state_dict()})


def report(metrics: dict[str, Any], state: dict[str, Any]) -> None:
    """Report an epoch, from rank 0 with a checkpoint: Ray Train returns the metrics of checkpoints alone."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if dist.get_rank() == 0:
            torch.save(state, Path(folder) / "state.pt")
            checkpoint = Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint)


def absolute_paths(options: argparse.Namespace) -> dict[str, Any]:
    """The options with paths that mean the same in each worker's own folder."""
    given = {"real": options.real, "held_out": options.held_out}
    paths = {name: str(Path(path).absolute()) for name, path in given.items() if path}
    return vars(options) | paths | {"out": Store(options.out).root}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--ranks", type=int, default=2, help="Ray Train workers (default 2)")
    options = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=absolute_paths(options),
            scaling_config=ScalingConfig(num_workers=options.ranks),
            run_config=RunConfig(storage_path=folder),
        )
        metrics = trainer.fit().metrics or {}
    print(metrics["mixture"])
    print(
        f"epoch {options.epochs}: {metrics['images']:,} images in {options.ranks} workers, accuracy "
        f"{metrics['accuracy']:.3f} on held-out real images"
    )


if __name__ == "__main__":
    main()
