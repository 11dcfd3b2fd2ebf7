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

    model: content of ``model.json``; what a resumed run says about its model's place replaces what it said earlier.
    Raises OutputError if it contains the run of another manifest or other files, or cannot be written.
    """
    if not store.exists(RUN_FILE):
        foreign = [name for name in store.list() if name not in IGNORED_IN_ROOT]
        if foreign == ["state"]:
            foreign = store.list("state")
        if foreign:
            raise OutputError(bad("out", store.root, f"empty or a rarefy run (it contains {first_names(foreign)})"))
        store.write_bytes(RUN_FILE, json.dumps({"manifest_digest": digest}).encode() + b"\n")
    if (other := _run_digest(store)) != digest:
        raise OutputError(
            bad(
                "out",
                store.root,
                f"the run of this manifest, {digest}: it contains the run of {other}; choose another --out",
            )
        )
    if model is not None and not (store.exists(MODEL_FILE) and store.read_bytes(MODEL_FILE) == model):
        store.write_bytes(MODEL_FILE, model)
    if not store.exists(MANIFEST_FILE):
        store.write_bytes(MANIFEST_FILE, manifest_text.encode())


def _run_digest(store: Store) -> str:
    try:
        return str(json.loads(store.read_bytes(RUN_FILE))["manifest_digest"])
    except (ValueError, KeyError, TypeError) as cause:
        raise OutputError(bad("out", f"{store.root}/{RUN_FILE}", "a file that rarefy wrote")) from cause
