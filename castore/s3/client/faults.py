"""What a failed request means: was it applied, is it worth repeating, what does the user read.

Pure: `connection` reduces every exception to Refused (the server answered) or Broken (it did not,
or not to the end), and `fault_of` decides from that alone. The rule behind it: only what a server
says in as many words counts as absent, refused or not applied; everything else is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from castore.errors import (
    AccessDenied,
    BucketNotFound,
    CredentialsError,
    EndpointUnreachable,
    RemoteError,
    StoreFull,
    WrongRegion,
)
from castore.urls import redacted

_NOT_NOW = {  # throttled: it was not begun
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
}
_NOT_APPLIED = {  # it did not arrive as it was sent, or can't be served this instant
    "BadDigest",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "TemporaryRedirect",
    "XAmzContentSHA256Mismatch",
}
_CREDENTIALS = {
    "AuthorizationHeaderMalformed": "they are malformed",
    "ExpiredToken": "they have expired",
    "ExpiredTokenException": "they have expired",
    "InvalidAccessKeyId": "the server does not know the access key",
    "InvalidToken": "the session token is not valid",
    "SignatureDoesNotMatch": "the secret key is not the access key's",
    "TokenRefreshRequired": "they have expired",
}
_WRONG_REGION = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_DEFINITE_5XX = (501, 505, 507)
_FULL = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"}
_EXPECTED_REGION = re.compile(r"expecting '([a-z0-9-]+)'")
_WAIT_S_MAX = 60.0
_OF_KEY = ("s3:GetObject", "s3:DeleteObject")


class KeyAbsent(Exception):
    """A definite 404 for this key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"nothing is at {key!r}")
        self.key = key


class PreconditionFailed(Exception):
    """What is at the key is not what the request was conditional on."""

    def __init__(self, key: str, *, conflict: bool = False, any_unknown: bool = False) -> None:
        super().__init__(f"{key!r} is not as it had to be")
        self.key = key
        self.conflict = conflict  # another conditional request was under way: it may come to be
        self.any_unknown = any_unknown  # put_once: an earlier attempt may have been there, briefly


class OutcomeUnknown(Exception):
    """The request may have been applied, or may still be. The cause is its `__cause__`."""

    def __init__(self, key: str) -> None:
        super().__init__(f"whether {key!r} was written is not known")
        self.key = key


class Refused(Exception):
    """The server answered, and not with success. `headers` are looked up in lower case."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code  # "" where the answer had none, as to a HEAD
        self.message = " ".join(message.split())[:300]
        self.headers = headers


class Broken(Exception):
    """There was no whole answer."""

    def __init__(self, reason: str, *, sent: bool = True, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.reason = " ".join(reason.split())[:300]
        self.sent = sent
        self.hopeless = hopeless


class Late(Broken):
    """It was not sent, and is not to be without another look: what it was decided by is old."""

    def __init__(self) -> None:
        reason = "the machine slept, or was too busy, before it was sent: repeat it"
        super().__init__(reason, sent=False, hopeless=True)


class Fault(Exception):
    """One attempt that failed: `error` is what the user reads if it was the last."""

    def __init__(
        self,
        error: Exception,
        *,
        repeat: bool,
        unknown: bool = False,
        wait_s: float = 0.0,
        throttled: bool = False,
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.repeat = repeat
        self.unknown = unknown  # it may have been applied
        self.wait_s = wait_s  # at least this long, the server asked
        self.throttled = throttled


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked, for the messages."""

    action: str  # as IAM names it
    key: str  # relative to the store
    url: str
    bucket: str
    endpoint: str
    region: str
    conditional: bool = False

    @property
    def of_key(self) -> bool:
        """Whether there may be nothing for it, so that its caller looks for that."""
        return bool(self.key) and (self.conditional or self.action in _OF_KEY)


def fault_of(failure: Refused | Broken, request: Request) -> Exception:
    """KeyAbsent, PreconditionFailed, or a Fault."""
    if isinstance(failure, Broken):
        return _of_broken(failure, request)
    status, code = failure.status, failure.code
    if code == "NoSuchBucket":
        return Fault(BucketNotFound(request.bucket, request.endpoint), repeat=False)
    if status == 404 and code == "NoSuchKey" and request.of_key:
        return KeyAbsent(request.key)
    if status in (409, 412) and request.conditional:
        return PreconditionFailed(request.key, conflict=status == 409)
    if status == 429 or code in _NOT_NOW:
        throttled = RemoteError(f"{_asked(request)} was throttled ({code})", status, code)
        return Fault(throttled, repeat=True, wait_s=_wait_s(failure), throttled=True)
    if code in _NOT_APPLIED or status in (307, 409):
        return Fault(_remote(failure, request), repeat=True, wait_s=_wait_s(failure))
    if status < 300 or status == 408 or (status >= 500 and status not in _DEFINITE_5XX):
        # A 503 that is not S3's own may be an intermediate's, which passed the request on.
        error = _remote(failure, request)
        return Fault(error, repeat=True, unknown=True, wait_s=_wait_s(failure))
    return Fault(_final(failure, request), repeat=False)


def _of_broken(broken: Broken, request: Request) -> Fault:
    if broken.sent:
        error: Exception = RemoteError(f"{_asked(request)} broke off: {broken.reason}")
    elif isinstance(broken, Late):
        error = RemoteError(f"{_asked(request)} was too late: {broken.reason}")
    else:
        error = EndpointUnreachable(request.endpoint, broken.reason)
    return Fault(error, repeat=not broken.hopeless, unknown=broken.sent)


def _final(refused: Refused, request: Request) -> Exception:
    status, code = refused.status, refused.code
    expected = _EXPECTED_REGION.search(refused.message)
    region = refused.headers.get("x-amz-bucket-region") or (expected[1] if expected else "")
    if code == "PermanentRedirect" or (region and (code in _WRONG_REGION or status == 301)):
        return WrongRegion(request.bucket, region, request.region)
    if code == "RequestTimeTooSkewed" or "request time" in refused.message.lower():
        return RemoteError(
            f"{request.endpoint} refuses this machine's clock ({refused.message}): set it right",
            status,
            code,
        )
    if code in _CREDENTIALS or status == 401:
        why = _CREDENTIALS.get(code, "they are not accepted")
        return CredentialsError(
            f"the AWS credentials don't work for {request.url}: {why} ({code or status}): renew "
            "them, or choose others with profile= or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if status == 507 or code in _FULL:
        return StoreFull(f"no space left at {request.endpoint}: free some and repeat")
    if status == 403 and code != "InvalidObjectState":
        return AccessDenied(request.action, request.url, refused.message)
    return _remote(refused, request)


def _remote(refused: Refused, request: Request) -> RemoteError:
    said = f"{refused.status} {refused.code}".strip()
    message = f": {refused.message}" if refused.message else ""
    location = refused.headers.get("location", "")
    elsewhere = f", to {redacted(location)[:200]}" if location and refused.status < 400 else ""
    return RemoteError(
        f"{_asked(request)} was answered with {said}{elsewhere}{message}",
        refused.status,
        refused.code,
    )


def _asked(request: Request) -> str:
    return f"{request.action} of {request.url} at {request.endpoint}"


def _wait_s(refused: Refused) -> float:
    value = refused.headers.get("retry-after", "")
    if re.fullmatch(r"[0-9]{1,9}", value):
        return min(float(value), _WAIT_S_MAX)
    try:
        at = parsedate_to_datetime(value).timestamp()
        now = parsedate_to_datetime(refused.headers.get("date", "")).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):
        return 0.0
    return min(max(at - now, 0.0), _WAIT_S_MAX)
