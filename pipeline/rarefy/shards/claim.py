"""Reserves an output for one run."""

from __future__ import annotations

import json

from rarefy.errors import OutputError, bad, first_names
from rarefy.shards.store import Store

RUN_FILE = "state/run.json"
MANIFEST_FILE = "manifest.toml"
MODEL_FILE = "model.json"
# The root of a freshly formatted volume contains this folder.
IGNORED_IN_ROOT = frozenset({"lost+found"})


def claim_output(store: Store, manifest_text: str, digest: str, model: bytes | None = None) -> None:
    """Reserve the output for this run, or check that it is reserved for it already.

    The run file is created only if it is absent, and contains the whole manifest: of two drivers that come at the same
    moment, one creates it, and the other compares. A driver that stops right after that leaves nothing to guess: the
    next one completes the output from the run file.
    model: content of ``model.json``; what a resumed run says about its model's place replaces what it said earlier.
    Raises OutputError if it contains the run of another manifest or other files, or cannot be written.
    """
    if (claim := store.read_or_none(RUN_FILE)) is None:
        claim = _create_claim(store, manifest_text, digest)
    run = _parse_claim(store, claim)
    if (other := run["manifest_digest"]) != digest:
        allowed = f"the run of this manifest, {digest}: it contains the run of {other}; choose another --out"
        raise OutputError(bad("out", store.root, allowed))
    # The run files of earlier versions did not contain the manifest.
    store.create(MANIFEST_FILE, run.get("manifest", manifest_text).encode())
    if model is not None and store.read_or_none(MODEL_FILE) != model:
        store.write_bytes(MODEL_FILE, model)


def check_claim(store: Store, digest: str) -> None:
    """Check that the output is reserved for the run of its own manifest, which has this digest.

    Writes nothing. Raises OutputError if it is not.
    """
    if (claim := store.read_or_none(RUN_FILE)) is None:
        raise OutputError(bad("out", store.root, f"a rarefy run: it has no {RUN_FILE}"))
    if (other := _parse_claim(store, claim)["manifest_digest"]) != digest:
        files = f"{MANIFEST_FILE} has the digest {digest}, {RUN_FILE} says {other}"
        raise OutputError(bad("out", store.root, f"a whole run: {files}; restore the file that was changed"))


def _create_claim(store: Store, manifest_text: str, digest: str) -> bytes:
    """Create the run file in an empty output; returns its content, which may be another driver's."""
    foreign = [name for name in store.list() if name not in IGNORED_IN_ROOT]
    if foreign == ["state"]:
        foreign = store.list("state")
    claim = json.dumps({"manifest_digest": digest, "manifest": manifest_text}).encode() + b"\n"
    if not foreign and store.create(RUN_FILE, claim):
        return claim
    if (earlier := store.read_or_none(RUN_FILE)) is None:
        raise OutputError(bad("out", store.root, f"empty or a rarefy run (it contains {first_names(foreign)})"))
    return earlier


def _parse_claim(store: Store, claim: bytes) -> dict[str, str]:
    """The run file's table. Raises OutputError if rarefy did not write it."""
    try:
        run = json.loads(claim)
    except (ValueError, RecursionError):
        run = None
    texts = isinstance(run, dict) and all(isinstance(value, str) for value in run.values())
    if not texts or "manifest_digest" not in run:
        raise OutputError(bad("out", f"{store.root}/{RUN_FILE}", "a file that rarefy wrote"))
    return dict(run)
