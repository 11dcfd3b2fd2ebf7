"""Injects faults at random into real runs and checks that no image is lost, doubled or wrong: ``make faults``.

A Ray of several raylets and an S3 stand-in run on this machine. Each row is a campaign of one kind of fault, or of
several at once; each run in it ends sealed and is compared with an undisturbed run. Exit code 1 if anything is lost,
doubled, wrong or not as documented.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from faults.campaign import Campaign, Row, as_json, row_lines, table
from faults.judge import undisturbed
from faults.kinds import RESTING, RUNNING
from faults.world import World

LOCAL = [name for name, kind in RUNNING.items() if "local" in kind.places]
S3 = [name for name, kind in RUNNING.items() if "s3" in kind.places]
STORAGE = [name for name, kind in RUNNING.items() if kind.places == ("s3",)]
SIGNALS = [name for name in RUNNING if "SIG" in name and "SIGSTOP" not in name]
INSIDE = [name for name, kind in RUNNING.items() if kind.late and "local" in kind.places]
MIXES = 3  # shares of the faults that fall on mixtures of kinds, on damage and on each kind alone


Plan = list[tuple[str, Callable[[Campaign, str], Row]]]
"""Names of campaigns, and what plays them."""


@dataclass(frozen=True)
class Form:
    """per_class: images of a run per class; gap, damages: see Campaign."""

    per_class: int
    gap: int
    damages: int


FULL, SHORT = Form(4, 3, 6), Form(6, 1, len(RESTING))


def full(faults: int) -> Plan:
    """Each kind alone, damage at rest, and everything at once, on a local disk and on S3."""
    share = faults // (MIXES + 1)
    each = max(1, (faults - 2 * share) // len(RUNNING))
    rest = max(2, faults - each * len(RUNNING) - share // 2)
    alone = [(name, _running([name], each, "s3" if name in STORAGE else "local")) for name in RUNNING]
    return [
        ("none", Campaign.undisturbed),
        *alone,
        ("damage at rest", _resting(list(RESTING), share // 2)),
        ("all at once, local", _running(LOCAL, (rest + 1) // 2, "local")),
        ("all at once, S3", _running(S3, (rest + 1) // 2, "s3")),
    ]


def short(rng: random.Random) -> Plan:
    """Every kind once, except those of which three are drawn and those that stop a process, which cost time to notice.

    Starting drivers and actors takes nearly all of the time, so each campaign has one run.
    """
    local = [*INSIDE, *rng.sample(SIGNALS, 3), "two drivers", "raylet added", "bad node"]
    return [
        ("processes and machines", _running(local, len(local), "local")),
        ("storage", _running(STORAGE, len(STORAGE), "s3")),
        ("damage at rest", _resting(list(RESTING), len(RESTING))),
    ]


def _running(kinds: Sequence[str], count: int, place: str) -> Callable[[Campaign, str], Row]:
    return lambda campaign, name: campaign.run(name, kinds, count, place)


def _resting(kinds: Sequence[str], count: int) -> Callable[[Campaign, str], Row]:
    return lambda campaign, name: campaign.rest(name, kinds, count)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200, help="at least this many (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of kinds, places and times (default 0)")
    parser.add_argument("--short", action="store_true", help="every kind once at most, in about a minute")
    parser.add_argument("--only", default="", metavar="TEXT", help="only campaigns whose name contains this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # clean up as after Ctrl-C
    rng = random.Random(options.seed)
    form, rows = SHORT if options.short else FULL, list[Row]()
    with World(steps=8, per_class=form.per_class) as world:
        expected = undisturbed(world.manifest, world.folder / "undisturbed")
        campaign = Campaign(world, expected, rng, form.gap, form.damages)
        for name, play in short(rng) if options.short else full(options.faults):
            if options.only in name:
                rows.append(play(campaign, name))
                print("\n".join(row_lines(rows[-1])), file=sys.stderr, flush=True)
    print(table(rows))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(as_json(rows) + "\n")
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
