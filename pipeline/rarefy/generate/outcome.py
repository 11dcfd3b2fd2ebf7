"""How a session ends if it could not make everything: with which error, and so with which exit code."""

from __future__ import annotations

from collections.abc import Collection

from rarefy.errors import RarefyError, ShardError, TemporaryError, first_names
from rarefy.generate.events import Blame
from rarefy.generate.shard_queue import Trouble
from rarefy.plan import shard_name

MISSING_SHOWN = 3  # causes


def missing_shards(prefix: str, shards: int, given_up: Collection[Trouble]) -> RarefyError:
    """The error of a run that is finished except for these shards.

    ShardError if the shards themselves are to blame, else TemporaryError: the same command may make them later.
    """
    troubles = sorted(given_up, key=lambda trouble: trouble.shard)
    names = [shard_name(prefix, trouble.shard) for trouble in troubles]
    causes = list(dict.fromkeys(trouble.cause for trouble in troubles))
    shown = "; ".join(causes[:MISSING_SHOWN]) + ("; ..." if len(causes) > MISSING_SHOWN else "")
    text = f"{len(names)} of {shards} shards are missing, the others are made: {first_names(names)} ({shown})"
    if all(trouble.blame is Blame.SHARD for trouble in troubles):
        return ShardError(text)
    return TemporaryError(f"{text}; run the same command to try them again")


def nothing_works(prefix: str, in_a_row: int, last: Trouble) -> RarefyError:
    """The error of a run in which no shard could be made, and the first ones had to be given up."""
    name = shard_name(prefix, last.shard)
    cause = last.cause if last.cause.startswith(name) else f"{name}: {last.cause}"
    text = f"no shard could be made, and {in_a_row} were given up; the last one: {cause}"
    return ShardError(text) if last.blame is Blame.SHARD else TemporaryError(text)
