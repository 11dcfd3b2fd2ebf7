"""Which storage errors pass by themselves, and how long a call is repeated."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

T = TypeVar("T")
PATIENCE_S = 300.0
FIRST_DELAY_S = 0.5  # upper limit of the first random delay; each later limit is twice as high
LONGEST_DELAY_S = 20.0
# Besides OSError, drivers of object stores raise these.
DRIVER_ERRORS = (
    ("http.client", "HTTPException"),
    ("urllib3.exceptions", "HTTPError"),
    ("aiohttp.client_exceptions", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("botocore.parsers", "ResponseParserError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
    ("gcsfs.retry", "ChecksumError"),
    ("azure.core.exceptions", "AzureError"),
)
TRANSIENT_ERRNOS = frozenset(
    {
        errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO,
        errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ENOBUFS,
        errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    }
)  # fmt: skip
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
# Error codes of S3 whose HTTP status is that of a permanent error.
TRANSIENT_CODES = frozenset(
    {
        "SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "ThrottlingException",
        "OperationAborted", "ConditionalRequestConflict", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
    }
)  # fmt: skip
REFUSED_STATUSES = frozenset({401, 403})
REFUSED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"})
# Names of exceptions and of their base classes, because the drivers that define them may not be installed.
TRANSIENT_NAMES = frozenset(
    {
        "TimeoutError", "ConnectionError", "Timeout", "HTTPClientError", "ResponseParserError", "HTTPException",
        "IncompleteRead", "IncompleteReadError", "ProtocolError", "ClientConnectionError", "ClientPayloadError",
        "ChunkedEncodingError", "TransportError", "ServiceRequestError", "ServiceResponseError", "ChecksumError",
    }
)  # fmt: skip
REFUSED_NAMES = frozenset(
    {
        "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "MetadataRetrievalError",
        "SSOError", "TokenRetrievalError", "GoogleAuthError", "ClientAuthenticationError",
    }
)  # fmt: skip


class Outlook(Enum):
    """What becomes of a storage error if the call is repeated."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    REFUSED = "refused"  # the credentials: transient if they were accepted before, because tokens are renewed


def outlook(error: BaseException, is_local: bool) -> Outlook:
    """Classify an error that a file system or a driver raised."""
    code, status = error_code(error), http_status(error)
    names = {kind.__name__ for kind in type(error).__mro__}
    if code in REFUSED_CODES or status in REFUSED_STATUSES or names & REFUSED_NAMES:
        return Outlook.REFUSED
    if code in TRANSIENT_CODES or status in TRANSIENT_STATUSES:
        return Outlook.TRANSIENT
    if status is not None:
        return Outlook.PERMANENT
    # gcsfs reports status 403 as an OSError with only this text.
    if not is_local and (isinstance(error, PermissionError) or str(error).startswith("Forbidden")):
        return Outlook.REFUSED
    transient = names & TRANSIENT_NAMES or (isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS)
    return Outlook.TRANSIENT if transient else Outlook.PERMANENT


def repeat(action: Callable[[], T], patience_s: float, again: Callable[[BaseException], bool]) -> T:
    """Call ``action`` until it returns, ``again`` says no, or the next try would begin after ``patience_s``.

    The delays are random, so that many machines do not come back at once; their upper limits grow exponentially.
    Raises the last error.
    """
    try:
        return action()  # nearly always enough, and several times faster than tenacity's bookkeeping
    except Exception as error:
        failed = [error]

    def attempt() -> T:
        if failed:
            raise failed.pop()
        return action()

    retrying = Retrying(
        stop=stop_before_delay(patience_s),
        wait=wait_random_exponential(multiplier=FIRST_DELAY_S, max=LONGEST_DELAY_S),
        retry=retry_if_exception(again),
        reraise=True,
    )
    return retrying(attempt)


def error_code(error: BaseException) -> str:
    """The error code that S3 sent, or an empty text."""
    return str(_s3_answer(error).get("Error", {}).get("Code", ""))


def http_status(error: BaseException) -> int | None:
    """The HTTP status of the server's answer, if the error is about one."""
    of_s3 = _s3_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    # In this order: S3, gcsfs, Azure, aiohttp.
    for value in (of_s3, *(getattr(error, name, None) for name in ("code", "status_code", "status"))):
        if isinstance(value, int | str) and str(value).isdecimal():
            return int(value)
    return None


def _s3_answer(error: BaseException) -> dict[str, Any]:
    """s3fs translates botocore's error, which has the answer, and keeps it as the cause."""
    for candidate in (error, error.__cause__):
        answer = getattr(candidate, "response", None)
        if isinstance(answer, dict):
            return answer
    return {}


def driver_errors() -> tuple[type[Exception], ...]:
    """OSError and the exceptions of all drivers that are loaded."""
    loaded = [(sys.modules[module], name) for module, name in DRIVER_ERRORS if module in sys.modules]
    return (OSError, *(getattr(module, name) for module, name in loaded))


def one_line(cause: BaseException) -> str:
    """What went wrong, without the path, which the caller names."""
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    # The text of a driver's FileNotFoundError is only the path.
    reason = "no such file or bucket" if isinstance(cause, FileNotFoundError) else str(cause)
    return " ".join(reason.split()) or type(cause).__name__
