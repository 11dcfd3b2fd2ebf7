"""One repository of the Hub: creates it, lists it and changes it. Errors are one line each.

Every call is repeated while its failure may pass. A repeated commit is safe: the library leaves out files that the
repository already has with the same content, so a commit whose answer was lost is not made twice.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from rarefy.errors import OutputError, RarefyError, TemporaryError, bad
from rarefy.publish.content import Kind
from rarefy.publish.files import PushFile
from rarefy.publish.needs import hub_library
from rarefy.shards.retry import TRANSIENT_NAMES, TRANSIENT_STATUSES, repeat

T = TypeVar("T")
PATIENCE_S = 60.0  # for calls that fail; the library itself also repeats uploads for 20 s
CHANGED_MEANWHILE = frozenset({409, 412})  # another commit came first
MAIN = "main"
REASONS = {
    401: "the Hub does not know you: log in with `hf auth login`, or set HF_TOKEN",
    403: "your token may not write there: use one with write access, or another name",
    404: "there is no such organization, repository or revision, or you may not see it",
}


@dataclass(frozen=True)
class Target:
    """Where to push. name: org/name; revision: a branch, made if necessary; endpoint: None for the Hub's own."""

    name: str
    kind: Kind
    private: bool = False
    revision: str | None = None
    endpoint: str | None = None

    @property
    def url(self) -> str:
        """The repository's page."""
        endpoint = (self.endpoint or hub_library().constants.ENDPOINT).rstrip("/")
        page = f"{endpoint}/datasets/{self.name}" if self.kind == "dataset" else f"{endpoint}/{self.name}"
        return page if self.revision is None else f"{page}/tree/{self.revision}"


@dataclass(frozen=True)
class Listed:
    """A file that the Hub has. sha256: of a large file; blob_id: git's hash."""

    blob_id: str
    sha256: str | None = None


def check_name(name: str) -> None:
    """Raise OutputError for what cannot be a repository's name."""
    hub = hub_library()
    allowed = "org/name or user/name: letters, digits, '-', '_' and '.'"
    if name.count("/") != 1:
        raise OutputError(bad("name", name, allowed))
    try:
        hub.utils.validate_repo_id(name)
    except ValueError as error:
        raise OutputError(f"{bad('name', name, allowed)} ({' '.join(str(error).split())})") from None


class Hub:
    """Calls for one repository. The token is HF_TOKEN or that of ``hf auth login``."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._api = hub_library().HfApi(endpoint=target.endpoint)
        if not sys.stderr.isatty():  # in a log, every bar is a page
            hub_library().utils.disable_progress_bars()
        self._repository = {"repo_id": target.name, "repo_type": target.kind}

    def create(self) -> None:
        """Make the repository and the branch unless they are there.

        Raises OutputError for a public one that should be private.
        """
        with_visibility = {"private": True} if self.target.private else {}
        self._call(lambda: self._api.create_repo(**self._repository, **with_visibility, exist_ok=True))
        if self.target.private and not self._call(lambda: self._api.repo_info(**self._repository)).private:
            raise OutputError(
                f"{self.target.name}: it is there already and public, so --private is not possible; make it private "
                "in its settings, or choose another name"
            )
        if (branch := self.target.revision) is not None and branch != MAIN:
            self._call(lambda: self._api.create_branch(**self._repository, branch=branch, exist_ok=True))

    def check_card(self, card: str) -> list[str]:
        """The Hub's own warnings about a card. Raises OutputError if it refuses the card."""
        url = f"{self._api.endpoint}/api/validate-yaml"
        body = {"content": card, "repoType": self.target.kind}
        session, headers = hub_library().utils.get_session(), hub_library().utils.build_hf_headers()

        def ask() -> tuple[bool, Any]:
            answer = session.post(url, json=body, headers=headers)
            refused = answer.status_code == 400
            if not refused:
                hub_library().utils.hf_raise_for_status(answer)
            return refused, answer.json()

        refused, content = self._call(ask)
        if refused:
            raise OutputError(f"README.md: the Hub refuses its metadata ({_messages(content, 'errors')})")
        return [_messages(content, "warnings")] if content.get("warnings") else []

    def files(self) -> dict[str, Listed]:
        """All files of the repository by path."""
        entries = self._call(lambda: list(self._api.list_repo_tree(**self._at(), recursive=True)))
        return {
            entry.path: Listed(entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
            for entry in entries
            if hasattr(entry, "blob_id")
        }

    def commit(self, files: Sequence[PushFile], deleted: Sequence[str], message: str) -> None:
        """Send files, delete others, and make it one commit."""
        hub = hub_library()
        with ExitStack() as stack:
            contents = [(file.path, stack.enter_context(file.content())) for file in files]

            def attempt() -> None:
                # The library marks operations as done, so every try needs new ones.
                operations = [hub.CommitOperationDelete(path_in_repo=path) for path in deleted]
                operations += [
                    hub.CommitOperationAdd(path_in_repo=path, path_or_fileobj=each) for path, each in contents
                ]
                self._api.create_commit(**self._at(), operations=operations, commit_message=message)

            self._call(attempt)

    def _at(self) -> dict[str, Any]:
        return {**self._repository, "revision": self.target.revision}

    def _call(self, action: Callable[[], T]) -> T:
        """Call it, repeat it while that may help, and translate what it raises."""
        with self._reporting(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pages about file types; check_card asks for the Hub's warnings itself
            return repeat(action, PATIENCE_S, may_pass)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except RarefyError:
            raise
        except _errors() as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> RarefyError:
        status, reason = status_of(error), _reason(error)
        if type(error).__name__ == "OfflineModeIsEnabled":
            return OutputError(f"{self.target.name}: HF_HUB_OFFLINE is set, so nothing can be sent; unset it")
        if may_pass(error):
            text = f"{self.target.name}: the Hub cannot be used at the moment ({reason})"
            return TemporaryError(f"{text}; what has arrived stays there, run the same command again")
        if type(error).__name__ == "LocalTokenNotFoundError":
            status = 401
        elif status is None and isinstance(error, PermissionError):  # of the xet storage
            status = 403
        known = f": {REASONS[status]}" if status in REASONS else ""
        return OutputError(f"{self.target.name}: the Hub refuses this{known} ({reason})")


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed later: the Hub is busy, or the network is down."""
    status = status_of(error)
    if status is not None:
        return status in TRANSIENT_STATUSES | CHANGED_MEANWHILE
    if type(error).__name__ == "OfflineModeIsEnabled":
        return False
    # The xet storage tells of a broken transfer by a RuntimeError.
    passing: tuple[type[Exception], ...] = (ConnectionError, TimeoutError, RuntimeError, *_http_errors())
    return any(isinstance(each, passing) or _has_transient_name(each) for each in _chain(error))


def _has_transient_name(error: BaseException) -> bool:
    """Whether it is a network error of an HTTP library that older versions of the Hub's library use."""
    return bool(TRANSIENT_NAMES & {kind.__name__ for kind in type(error).__mro__})


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the answer that caused an error; None if there was no answer."""
    for each in _chain(error):
        status = getattr(getattr(each, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes: the library wraps errors of uploads."""
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__


def _errors() -> tuple[type[Exception], ...]:
    """What the Hub's library raises: its errors are OSError or ValueError, failed uploads RuntimeError."""
    return (OSError, ValueError, RuntimeError, *_http_errors())


def _http_errors() -> tuple[type[Exception], ...]:
    """The base class of errors of the HTTP library that this version of the Hub's library uses."""
    found = getattr(hub_library().errors, "HTTPError", None)
    return () if found is None else (found,)


def _reason(error: BaseException) -> str:
    """What the server said, or what the innermost error says, in one line."""
    errors = list(_chain(error))
    said = [getattr(each, "server_message", None) for each in errors]
    status = status_of(error)
    text = next((each for each in said if each), None) or (f"HTTP {status}" if status else str(errors[-1]))
    return " ".join(str(text).split())[:300] or type(errors[-1]).__name__


def _messages(content: Any, key: str) -> str:
    return "; ".join(" ".join(str(each.get("message")).split()) for each in content.get(key, []))
