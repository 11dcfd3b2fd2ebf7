"""What a push sends: the files of a data set or of a model folder, with what people should know about them."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rarefy.errors import OutputError, bad, near_path
from rarefy.generate.progress import StageProgress, no_stage
from rarefy.publish.files import PushFile
from rarefy.shards.claim import MANIFEST_FILE
from rarefy.shards.store import Store

Kind = Literal["dataset", "model"]
CONFIG = "config.json"


@dataclass(frozen=True)
class Content:
    """A data set or a model, ready to be sent.

    files: in the order of sending, those that make it complete last; card: the text of README.md; own: patterns of
    files that only rarefy writes, which may be deleted when they are no longer part; mark: the file that tells whether
    a repository has this content, empty for models; left_out: what is not sent, and why; notes: what to know.
    """

    kind: Kind
    name: str
    files: tuple[PushFile, ...]
    card: str
    own: tuple[str, ...] = ()
    mark: str = ""
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def is_own(self, path: str) -> bool:
        """Whether a file of the repository is one that only rarefy writes."""
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self.own)


def read_content(source: str, real_images: bool = False, progress: StageProgress = no_stage) -> Content:
    """The data set of a run or the model folder at a path or URL, recognised by its files, and checked.

    real_images: send a model folder's real images too; progress: told while a data set is checked. Raises OutputError
    for anything else, for a run that is not sealed or is damaged, and for a card that the Hub would refuse.
    """
    from rarefy.publish.data_set import data_set_content
    from rarefy.publish.model import model_content

    if source.startswith("hf://"):
        raise OutputError(bad("source", source, "a local path or a URL of your own storage; it is on the Hub already"))
    store = Store(source)
    if store.exists(MANIFEST_FILE):
        if real_images:
            raise OutputError("--real-images: not allowed for a data set, which has no real images of its own")
        return data_set_content(store, progress)
    if store.exists(CONFIG):
        return model_content(source, real_images)
    raise OutputError(_neither(store, source))


def _neither(store: Store, source: str) -> str:
    """The message for a folder that is neither, with a guess at what was meant."""
    text = f"{bad('source', source, 'a run (with manifest.toml) or a model folder (with config.json)')}"
    if store.is_local and not Path(source).expanduser().exists():
        return f"{text}: there is no such folder{near_path(source)}"
    if store.exists(f"model/{CONFIG}"):
        return f"{text}; did you mean {source.rstrip('/')}/model?"
    return text


def ordered(files: Sequence[PushFile], last: Sequence[str]) -> tuple[PushFile, ...]:
    """By path, with those in ``last`` at the end and in that order: they say that everything else is there."""
    places = {path: place for place, path in enumerate(last, 1)}
    return tuple(sorted(files, key=lambda file: (places.get(file.path, 0), file.path)))
