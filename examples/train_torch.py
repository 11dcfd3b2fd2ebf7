"""Train a classifier on real and generated images with plain PyTorch; stop it at any time and go on.

python examples/train_torch.py out/demo photos/ --checkpoint model.pt
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from small_classifier import accuracy, add_data_arguments, make_network, make_optimizer, open_data, train_step

from rarefy import consume

SAVE_EVERY = 50  # steps


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="where to save, and what to go on from")
    options = parser.parse_args(argv)

    data, held_out = open_data(options)
    sampler = consume.EpochSampler(data, seed=0)
    loader = consume.Loader(data, options.batch_size, sampler=sampler, num_workers=options.workers)
    network = make_network(data)
    optimizer = make_optimizer(network)
    print(data)

    if options.checkpoint and options.checkpoint.exists():
        saved = torch.load(options.checkpoint)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["data"])
        print(f"going on after {saved['data']['done']:,} images of epoch {loader.epoch + 1}")

    def save() -> None:
        if options.checkpoint:
            states = network.state_dict(), optimizer.state_dict(), loader.state_dict()
            unfinished = options.checkpoint.with_suffix(".part")  # so that a stop leaves no half of a file
            torch.save(dict(zip(("network", "optimizer", "data"), states, strict=True)), unfinished)
            unfinished.replace(options.checkpoint)

    for epoch in range(loader.epoch, options.epochs):
        loader.set_epoch(epoch)
        loss = float("nan")
        for step, (images, labels) in enumerate(loader, 1):
            loss = train_step(network, optimizer, images, labels)
            if step % SAVE_EVERY == 0:
                save()
        loader.set_epoch(epoch + 1)
        save()
        reached = accuracy(network, held_out)
        print(f"epoch {epoch + 1}: loss {loss:.3f}, accuracy {reached:.3f} on {len(held_out):,} held-out real images")


if __name__ == "__main__":
    main()
