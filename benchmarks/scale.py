"""What a run of 10^9 images on 1,000 GPUs would take, by simulation: ``python -m benchmarks.scale`` (docs/SCALE.md).

Bytes come from the product's own writers. The driver's rate and the requests per shard are what benchmarks/driver.py
measured, images per second what one H100 made. Prices are examples, not quotations; every figure is an option.
"""

from __future__ import annotations

import argparse
import heapq
import io
import json
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache

from benchmarks.synthetic import synthetic_samples
from rarefy.manifest import Manifest, parse_manifest
from rarefy.plan import estimate_bytes
from rarefy.shards.metadata import write_table

SHARD_SIZES = (1_000, 2_000, 5_000, 10_000, 20_000)
RECOMMENDED = 5_000
HOUR_S = 3600.0
IN_FLIGHT = 2  # shards that a GPU has: one is sampled, the other waits
LIST_PAGE = 1000  # names in one answer of an object store
PREFIX_PUTS = 3500  # a second, on one prefix of S3; its documentation says at least
TEXT = """
name = "scale"
model = {{ preset = "adm-imagenet-64", checkpoint = "unet", classifier = "classifier" }}
sampler = {{ steps = 25, batch = 128 }}
classes.total = {images}
output.shard_size = {shard_size}
"""


@dataclass(frozen=True)
class Figures:
    """The cluster and what was measured; main() says what they are and in which units."""

    gpus: int
    rate: float
    spread: float
    preemptions: float
    start: float
    driver: float
    puts: float
    gets: float
    seal: float
    check: float
    seal_cores: float
    read: float
    gpu_price: float
    put_price: float
    get_price: float
    month_price: float


@dataclass(frozen=True)
class Outcome:
    """hours: of generating; lost: share of GPU time spent on shards that were preempted; busy: of the driver's time."""

    shards: int
    hours: float
    lost: float
    retries: int
    busy: float


@dataclass(frozen=True)
class Row:
    """One shard size. All sizes are in bytes, seconds and dollars."""

    shard_size: int
    shard_bytes: int
    shard_seconds: float
    total_bytes: int
    outcome: Outcome
    requests: int
    resume_pages: int
    seal_hours: float
    gpu_dollars: float
    request_dollars: float
    month_dollars: float


def simulate(shards: int, shard_size: int, figures: Figures, seed: int = 0) -> Outcome:
    """GPUs take shards from one driver until all are made. Each GPU has the next shard queued while it samples one.

    The driver handles replies one after the other and answers each with another shard. A preemption loses the shard
    that is sampled, which another GPU makes later, and the GPU returns after a while.
    """
    chance, each, handling = random.Random(seed), shard_size / figures.rate, 1 / figures.driver
    queues = [deque([0.0] * IN_FLIGHT) for _ in range(figures.gpus)]  # when a GPU was sent each shard that it has
    events = [(figures.start * chance.random(), gpu) for gpu in range(figures.gpus)]  # when a GPU becomes idle
    heapq.heapify(events)
    made, retries, lost_s, handled_at = 0, 0, 0.0, 0.0
    while made < shards:
        now, gpu = heapq.heappop(events)
        begin = max(now, queues[gpu].popleft())
        seconds = each * (1 + figures.spread * (2 * chance.random() - 1))
        until_lost = HOUR_S * chance.expovariate(figures.preemptions) if figures.preemptions else seconds
        if until_lost < seconds:
            retries, lost_s = retries + 1, lost_s + until_lost
            queues[gpu] = deque([0.0] * IN_FLIGHT)
            heapq.heappush(events, (begin + until_lost + figures.start, gpu))
            continue
        made, handled_at = made + 1, max(handled_at, begin + seconds) + handling
        queues[gpu].append(handled_at)
        heapq.heappush(events, (begin + seconds, gpu))
    return Outcome(
        made, handled_at / HOUR_S, lost_s / (figures.gpus * handled_at), retries, made * handling / handled_at
    )


def manifest_of(images: int, shard_size: int) -> Manifest:
    return parse_manifest(TEXT.format(images=images, shard_size=shard_size), "scale")


@cache
def row_bytes(images: int) -> float:
    """Parquet bytes per image, from the rows of one shard of 1,000."""
    manifest, target = manifest_of(images, SHARD_SIZES[0]), io.BytesIO()
    samples = synthetic_samples(manifest, 0)
    write_table(target, [sample.record for sample in samples], manifest.text, manifest.digest)
    return len(target.getvalue()) / len(samples)


def total_bytes(images: int, shard_size: int) -> int:
    """Bytes of all tars, which are estimated, and of all Parquet files."""
    return estimate_bytes(manifest_of(images, shard_size)) + round(images * row_bytes(images))


def estimate(images: int, shard_size: int, figures: Figures) -> Row:
    """Everything about one shard size."""
    total = total_bytes(images, shard_size)
    shards = -(-images // shard_size)
    outcome = simulate(shards, shard_size, figures)
    seal_s = max(shards / figures.seal + images / (figures.check * figures.seal_cores), total / figures.read)
    puts, gets = shards * figures.puts, shards * (figures.gets + 3)  # seal reads all three files of a shard
    return Row(
        shard_size=shard_size,
        shard_bytes=total // shards,
        shard_seconds=shard_size / figures.rate,
        total_bytes=total,
        outcome=outcome,
        requests=round(puts + gets),
        resume_pages=-(-shards // LIST_PAGE),
        seal_hours=seal_s / HOUR_S,
        gpu_dollars=outcome.hours * figures.gpus * figures.gpu_price,
        request_dollars=(puts * figures.put_price + gets * figures.get_price) / 1000,
        month_dollars=total / 1e9 * figures.month_price,
    )


def limits(images: int, shard_size: int, figures: Figures) -> dict[str, float]:
    """How many GPUs each part can serve at most, the tightest first. For seal: until it takes as long as generating."""
    each = total_bytes(images, shard_size) / images
    gpus = {
        "seal, checking on one machine": figures.check * figures.seal_cores / figures.rate,
        "seal, reading on one machine": figures.read / (figures.rate * each),
        "the driver's shards per second": figures.driver * shard_size / figures.rate,
        "writes to one prefix of S3": PREFIX_PUTS / figures.puts * shard_size / figures.rate,
    }
    return dict(sorted(gpus.items(), key=lambda item: item[1]))


def table(rows: Sequence[Row]) -> str:
    """Markdown, as in docs/SCALE.md."""
    lines = [
        "| images per shard | shards | MB per shard | seconds per shard | hours | GPU time lost | driver busy | "
        "requests | LIST pages of a resume | hours of seal | GPUs $ | requests $ | storage $ per month |",
        "|" + "---|" * 13,
    ]
    for row in rows:
        made = row.outcome
        cells = (
            f"{row.shard_size:,}", f"{made.shards:,}", f"{row.shard_bytes / 1e6:.0f}", f"{row.shard_seconds:.0f}",
            f"{made.hours:.2f}", f"{made.lost:.2%}", f"{made.busy:.1%}", f"{row.requests / 1e6:.1f} M",
            f"{row.resume_pages:,}", f"{row.seal_hours:.1f}", f"{row.gpu_dollars:,.0f}",
            f"{row.request_dollars:,.0f}", f"{row.month_dollars:,.0f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


OPTIONS: tuple[tuple[str, float, str], ...] = (
    ("--rate", 38.0, "images per second of one GPU (ADM-64, 25 steps, batch 128, one H100)"),
    ("--spread", 0.1, "how far the time of a shard varies, as a fraction"),
    ("--preemptions", 0.05, "of one GPU per hour"),
    ("--start", 300.0, "seconds until a new machine samples"),
    ("--driver", 268.0, "shards per second that the driver handles (benchmarks/driver.py)"),
    ("--puts", 3.0, "writing requests per shard (benchmarks/driver.py)"),
    ("--gets", 4.0, "reading requests per shard (benchmarks/driver.py)"),
    ("--seal", 320.0, "tiny shards per second that seal checks on one machine (benchmarks/driver.py)"),
    ("--check", 850.0, "images per second and core that seal checks (benchmarks/driver.py --sealed 40 --rows 500)"),
    ("--seal-cores", 64.0, "cores of the machine that seals"),
    ("--read", 1e9, "bytes per second that seal reads on one machine"),
    ("--gpu-price", 3.0, "dollars per GPU and hour"),
    ("--put-price", 0.005, "dollars per 1,000 writing requests"),
    ("--get-price", 0.0004, "dollars per 1,000 reading requests"),
    ("--month-price", 0.023, "dollars per GB and month"),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10**9, help="default 10^9")
    parser.add_argument("--gpus", type=int, default=1000, help="default 1000")
    for name, default, text in OPTIONS:
        parser.add_argument(name, type=float, default=default, help=f"{text}; default {default:g}")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = vars(parser.parse_args(argv))
    images, as_json = options.pop("images"), options.pop("json")
    figures = Figures(**options)
    rows = [estimate(images, shard_size, figures) for shard_size in SHARD_SIZES]
    print(table(rows))
    tightest = limits(images, RECOMMENDED, figures)
    print(f"\nmost GPUs, with {RECOMMENDED:,} images per shard:")
    print("\n".join(f"- {name}: {number:,.0f}" for name, number in tightest.items()))
    if as_json:
        print(json.dumps({"figures": asdict(figures), "rows": [asdict(row) for row in rows], "limits": tightest}))


if __name__ == "__main__":
    main()
