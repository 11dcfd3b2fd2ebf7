"""Train on real and generated images in several processes, each with its part of every epoch.

torchrun --nproc-per-node 2 examples/train_torchrun.py out/demo photos/
"""

from __future__ import annotations

import argparse

import torch.distributed as dist
from small_classifier import accuracy, add_data_arguments, make_network, make_optimizer, open_data, train_epoch
from torch.nn.parallel import DistributedDataParallel

from rarefy import consume


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    options = parser.parse_args()

    dist.init_process_group("gloo")  # "nccl" on GPUs
    data, held_out = open_data(options)
    sampler = consume.EpochSampler(data, seed=0)  # finds rank and world size by itself
    loader = consume.Loader(data, options.batch_size, sampler=sampler, num_workers=options.workers)
    network = DistributedDataParallel(make_network(data))
    optimizer = make_optimizer(network)
    if sampler.rank == 0:
        print(data)

    for epoch in range(options.epochs):
        loader.set_epoch(epoch)
        used = train_epoch(network, optimizer, loader)
        if sampler.rank == 0:
            reached = accuracy(network.module, held_out)
            print(
                f"epoch {epoch + 1}: {used:,} images in {sampler.world_size} processes, accuracy {reached:.3f} "
                f"on {len(held_out):,} held-out real images"
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
