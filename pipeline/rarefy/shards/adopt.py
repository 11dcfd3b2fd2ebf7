"""Whether files that another attempt left can be used: attempts on different machines may round differently."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence

from rarefy.errors import ShardError
from rarefy.shards.metadata import DIGEST_KEY, SampleRecord, check_record, parse_table, to_records
from rarefy.shards.reader import json_object, tar_samples

# What may differ between two machines. predicted_id may if two probabilities are nearly equal.
ROUNDED = ("confidence", "entropy", "entropy_normalized", "margin")
OF_THE_DRAW = frozenset({*ROUNDED, "predicted_id", "seed", "candidate", "accepted", "image_sha256"})
TOLERANCE = 0.01  # of scores of the same image; a damaged digit that matters changes them by more


def records_in_tar(data: bytes, own: Sequence[SampleRecord]) -> list[SampleRecord] | None:
    """The rows of a tar that another attempt at the same shard wrote; None if it is damaged or of another run.

    own: the rows of this attempt, in the same order. Every image must have the hash that its row says. Seeds,
    candidates and scores may be those of another machine, but scores of equal images must nearly agree.
    """
    try:
        found = list(tar_samples(io.BytesIO(data), ""))
        if [key for key, _ in found] != [record.key for record in own]:
            return None
        return [_record(fields, mine) for (_, fields), mine in zip(found, own, strict=True)]
    except (ValueError, TypeError):
        return None


def rows_agree(parquet: bytes, records: Sequence[SampleRecord], digest: str) -> bool:
    """Whether a Parquet file, which may come from another version of pyarrow, has exactly these rows."""
    try:
        table = parse_table(io.BytesIO(parquet), "")
        found = to_records(table)
    except ShardError:
        return False
    return found == list(records) and (table.schema.metadata or {}).get(DIGEST_KEY) == digest.encode()


def _record(fields: dict[str, bytes], mine: SampleRecord) -> SampleRecord:
    record = SampleRecord(**json_object(fields["json"]))
    same_kinds = [type(value) for value in vars(record).values()] == [type(value) for value in vars(mine).values()]
    if not (same_kinds and record.stable_json() == fields["json"] and _same_sample(record, mine)):
        raise ShardError(f"sample {mine.key} is another one")
    check_record(record)
    if fields["cls"] != str(mine.class_id).encode():
        raise ShardError(f"sample {mine.key} is of another class")
    if hashlib.sha256(fields["png"]).hexdigest() != record.image_sha256:
        raise ShardError(f"sample {mine.key} has another image")
    return record


def _same_sample(record: SampleRecord, mine: SampleRecord) -> bool:
    theirs, own = vars(record), vars(mine)
    if any(theirs[name] != own[name] for name in own if name not in OF_THE_DRAW):
        return False
    if (record.candidate == mine.candidate) != (record.seed == mine.seed):
        return False
    if record.image_sha256 != mine.image_sha256 or mine.confidence is None:
        return True
    return all(math.isclose(theirs[name], own[name], rel_tol=TOLERANCE, abs_tol=TOLERANCE) for name in ROUNDED)
