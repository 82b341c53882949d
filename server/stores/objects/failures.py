"""What a failed request to an object store means: try it again, answer the caller with it, or give up."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from shared.errors import Forbidden, InvalidName, StorageFull, StorageUnavailable, TooLarge, TransferError

__all__ = ["FAILURES", "Missing", "Refused", "Retryable", "Unmet", "typed"]

_log = logging.getLogger("server.stores.failures")

FAILURES: Final = (ClientError, BotoCoreError, aiohttp.ClientError, OSError, TimeoutError, asyncio.IncompleteReadError)
"""What the client library raises."""

_FULL: Final = frozenset(
    {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
)
# Credentials that have expired are renewed by whatever made them, sooner or later; a clock is set.
_RETRYABLE: Final = frozenset(
    (
        *("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestTimeTooSkewed", "RequestExpired"),
        *("RequestTimeout", "RequestTimeoutException", "SlowDown", "Throttling", "ThrottlingException"),
        *(
            "ThrottledException",
            "RequestThrottled",
            "TooManyRequests",
            "TooManyRequestsException",
            "BandwidthLimitExceeded",
        ),
        *("RequestLimitExceeded", "OperationAborted", "ConditionalRequestConflict", "InternalError", "IncompleteBody"),
    )
)
_MISSING: Final = frozenset({"NoSuchKey", "NoSuchUpload", "InvalidPart", "NotFound", "404"})
_UNNAMEABLE: Final = frozenset({"KeyTooLongError", "InvalidURI", "InvalidObjectName", "XMinioInvalidObjectName"})
_NOT_ALLOWED: Final = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "MethodNotAllowed"})


class Unmet(Exception):
    """What the request was about isn't there, or isn't what its condition says.

    The request may have been sent before, here or by the HTTP client, and not been answered: then it may be what did
    that. So the caller looks what is there.
    """


class Missing(Unmet):
    """There is no such object, multipart upload, or part."""


class Refused(Unmet):
    """The object isn't what the request's condition says (412): there is one, or another one."""


class Retryable(Exception):
    """The same request may succeed at once or later; the message is for the log."""


def typed(error: Exception, name: str | None) -> Exception:
    """Missing, Refused, Retryable, or a TransferError about the file `name`; `error` itself where it is a defect."""
    if isinstance(error, ParamValidationError):
        return error
    if not isinstance(error, ClientError):
        return Retryable(str(error) or type(error).__name__)
    code, status = _code(error), _status(error)
    if code in _MISSING:
        return Missing(code)
    if status == 412:
        return Refused(code)
    if code in _FULL or status == 507:
        return StorageFull("the server's object store is full", name=name)
    if code in _RETRYABLE or status >= 500 or status in {408, 409, 429}:
        return Retryable(str(error))
    if code == "EntityTooLarge":
        return TooLarge("the object store takes no object of this size", name=name)
    if code in _UNNAMEABLE or (name is not None and code in {"InvalidRequest", "InvalidArgument", "400"}):
        return InvalidName("the server's object store can't have a file of this name", name=name)
    _log.warning("the object store refuses a request: %s", error)
    if code in _NOT_ALLOWED:
        return Forbidden("the server itself may not do this with its files", name=name)
    return unavailable(name)


def unavailable(name: str | None) -> TransferError:
    """The error where the object store can't be used."""
    return StorageUnavailable("the server's files can't be used just now; try again later", name=name)


def gave_up(error: Exception, name: str | None) -> TransferError:
    """The error where a request was tried again for as long as it may take."""
    _log.warning("the object store can't be used: %s", error)
    return unavailable(name)


def _code(error: ClientError) -> str:
    return str(_part(error, "Error").get("Code", ""))


def _status(error: ClientError) -> int:
    return int(_part(error, "ResponseMetadata").get("HTTPStatusCode", 0))


def _part(error: ClientError, name: str) -> Mapping[str, Any]:
    return error.response.get(name, {})
