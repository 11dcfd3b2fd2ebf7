"""``rarefy push``: sends what the Hub does not have yet, and checks by the Hub's listing that everything arrived."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rarefy.errors import OutputError, TemporaryError, first_names
from rarefy.publish.content import Content
from rarefy.publish.files import PushFile
from rarefy.publish.hub import Hub, Listed, Target
from rarefy.shards.index import SUCCESS

PART_FILES = 400  # per commit: the Hub takes long for more
PART_BYTES = 4 << 30  # per commit, so that little is sent again after an interruption
USUAL = frozenset({".gitattributes", ".gitignore", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE"})

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pushed:
    """The result.

    files, size_bytes: of the content; sent, sent_bytes: of what the Hub did not have; kept: files of the repository
    that are not rarefy's and stay.
    """

    url: str
    kind: str
    files: int
    size_bytes: int
    sent: int
    sent_bytes: int
    deleted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    commits: int = 0
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The result for people."""
        notes = [f"note: {note}" for note in self.notes]
        if self.kept:
            notes.append(f"note: left as they are in the repository: {first_names(self.kept)}")
        if not self.commits:
            return "\n".join([*notes, f"nothing to send: {self.url} has all {self.files:,} files already"])
        deleted = f", deleted {len(self.deleted):,}" if self.deleted else ""
        sent = f"sent {self.sent:,} of {self.files:,} files ({megabytes(self.sent_bytes)}){deleted}"
        commits = "1 commit" if self.commits == 1 else f"{self.commits:,} commits"
        return "\n".join([*notes, f"{sent} in {commits}; all are there with their hashes: {self.url}"])


def push(content: Content, target: Target, progress: Progress, replace: bool = False) -> Pushed:
    """Send a data set or model to a repository, which is made if necessary.

    Files that the Hub has are not sent again, so a repeated push goes on where an interrupted one stopped. The files
    that make the content complete come last. replace: delete everything else that is in the repository; otherwise a
    repository with something else is refused. Raises OutputError, and TemporaryError if a repetition may succeed.
    """
    hub = Hub(target)
    hub.create()
    notes = [*content.notes, *hub.check_card(content.card)]
    there = hub.files()
    deleted, kept = _others(content, there, target, replace)
    missing = [file for file in content.files if not file.is_same(there.get(file.path))]
    commits = 0
    if missing or deleted:
        complete = bool(content.mark) and SUCCESS in there
        commits = _send(hub, content, missing, deleted, complete, progress)
        _check_arrived(content, hub.files(), target)
    return Pushed(
        url=target.url,
        kind=content.kind,
        files=len(content.files),
        size_bytes=content.size_bytes,
        sent=len(missing),
        sent_bytes=sum(file.size_bytes for file in missing),
        deleted=deleted,
        kept=kept,
        commits=commits,
        notes=notes,
    )


def _others(content: Content, there: dict[str, Listed], target: Target, replace: bool) -> tuple[list[str], list[str]]:
    """The repository's other files: those to delete, and those to keep. Raises OutputError for something else's."""
    own = {file.path for file in content.files}
    others = sorted(set(there) - own - USUAL)
    if replace:
        return others, []
    marked = [file for file in content.files if file.path == content.mark]
    if marked and content.mark in there:
        if not marked[0].is_same(there[content.mark]):
            raise OutputError(_taken(target, f"another data set: its {content.mark} differs"))
        return [path for path in others if content.is_own(path)], [path for path in others if not content.is_own(path)]
    if others:
        raise OutputError(_taken(target, f"other files: {first_names(others)}"))
    return [], []


def _taken(target: Target, what: str) -> str:
    return f"{target.name}: the repository has {what}; choose another name, or delete them with --replace"


def _send(
    hub: Hub, content: Content, missing: Sequence[PushFile], deleted: list[str], complete: bool, progress: Progress
) -> int:
    """Send in several commits if there is much; returns their number. complete: whether the repository has _SUCCESS."""
    parts = list(_parts(missing)) or [[]]
    if len(parts) > 1 and complete:
        # A repository must not look complete while a part of it is replaced.
        success = next(file for file in content.files if file.path == SUCCESS)
        parts = [*parts[:-1], [*(file for file in parts[-1] if file.path != SUCCESS), success]]
        hub.commit([], [SUCCESS], f"{content.name}: not complete while it is replaced")
    done = 0
    for number, part in enumerate(parts, 1):
        progress("sending files", done, len(missing))
        last = number == len(parts)
        message = f"{content.name}, by rarefy" + ("" if len(parts) == 1 else f" (part {number} of {len(parts)})")
        hub.commit(part, deleted if last else [], message)
        done += len(part)
    progress("sending files", len(missing), len(missing))
    return len(parts) + (len(parts) > 1 and complete)


def _parts(files: Sequence[PushFile]) -> Iterator[list[PushFile]]:
    part: list[PushFile] = []
    for file in files:
        full = len(part) == PART_FILES or sum(each.size_bytes for each in part) + file.size_bytes > PART_BYTES
        if part and full:
            yield part
            part = []
        part.append(file)
    if part:
        yield part


def _check_arrived(content: Content, there: dict[str, Listed], target: Target) -> None:
    wrong = [file.path for file in content.files if not file.is_same(there.get(file.path))]
    if wrong:
        raise TemporaryError(
            f"{target.name}: not there as sent: {first_names(wrong)}; run the same command again, and look whether "
            "somebody else writes to the repository"
        )


def preview(content: Content, name: str) -> str:
    """What a push would send, for people."""
    lines = [f"{file.size_bytes:>15,}  {file.path}" for file in content.files]
    lines += [f"left out: {line}" for line in content.left_out]
    lines += [f"note: {note}" for note in content.notes]
    front = content.card.split("\n---\n")[0].removeprefix("---\n")
    lines += ["card:", *(f"  {line}" for line in front.splitlines())]
    lines.append(
        f"would send {len(content.files):,} files ({megabytes(content.size_bytes)}) to the {content.kind} {name}"
    )
    return "\n".join(lines)


def megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
