"""Requests to AWS Systems Manager, which alone here are made by botocore.

What a request or a reply holds is in no log, whatever is logged of botocore, and in no error: a
request that fails returns a `Failure` instead of raising, so that the frames that had the values in
them, and the error that may quote them, are gone before something is raised.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import contextvars
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)

from castore.errors import AccessDenied, CredentialsError, EndpointUnreachable, RemoteError
from conducto.errors import ContextError, SecretsError
from conducto.secrets.masker import Masker

ATTEMPTS_MAX = 5  # of one request, with botocore's backoff between them
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30

_REASON_CHARS_MAX = 300
_NO_CREDENTIALS = (
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)
_UNKNOWN_CREDENTIALS = {
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "UnrecognizedClientException",
}
_THROTTLED = {"RequestLimitExceeded", "Throttling", "ThrottlingException", "TooManyUpdates"}
_ACTIONS = {
    "delete_parameters": "ssm:DeleteParameters",
    "get_parameters_by_path": "ssm:GetParametersByPath",
    "put_parameter": "ssm:PutParameter",
}


class Failure(NamedTuple):
    """A request that failed: the `error` to raise, with no traceback and nothing behind it."""

    error: Exception


class Client:
    """Asks by this process's region and credentials. Raises ContextError, CredentialsError."""

    def __init__(self) -> None:
        self._client = _client(os.getpid(), _settings())

    def ask(
        self, operation: str, on: str, hidden: str = "", **parameters: Any
    ) -> dict[str, Any] | Failure:
        """The reply, or why there is none. `on` is what errors name; `hidden` is in none."""
        try:
            with _unlogged():
                reply: dict[str, Any] = getattr(self._client, operation)(**parameters)
            return reply
        except Exception as error:  # each may quote the parameters
            endpoint = str(self._client.meta.endpoint_url)
            return Failure(_typed(error, _ACTIONS[operation], on, hidden, endpoint))


def _settings() -> bytes:
    """What in the environment chooses region, endpoint and credentials, with none of it in it."""
    chosen = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    return hashlib.sha256(repr((os.environ.get("HOME"), chosen)).encode()).digest()


@lru_cache(maxsize=8)
def _client(pid: int, settings: bytes) -> Any:
    """botocore's, which takes a tenth of a second to make; a child that was forked has its own."""
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": ATTEMPTS_MAX, "mode": "standard"},
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    try:
        session = botocore.session.get_session()
        return session.create_client("ssm", region_name=region, config=config)
    except NoRegionError as error:
        raise ContextError(
            "in which region are the secrets? Set AWS_REGION, or a region in ~/.aws/config"
        ) from error
    except BotoCoreError as error:
        raise CredentialsError(f"AWS's configuration can't be used: {error}") from error


def _typed(error: Exception, action: str, on: str, hidden: str, endpoint: str) -> Exception:
    reason = _without(hidden, str(error))
    if isinstance(error, ClientError):
        said = _without(hidden, str(error.response["Error"].get("Message", "")))
        code = str(error.response["Error"].get("Code", ""))
        status = int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))
        return _of_answer(code, said, status, action, on, endpoint)
    if isinstance(error, _NO_CREDENTIALS):
        return CredentialsError(
            f"Parameter Store was not asked for the secrets, as there are no AWS credentials: "
            f"{reason.rstrip('.')}. Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if isinstance(error, ConnectionError | HTTPClientError | OSError):
        return EndpointUnreachable(endpoint, type(error).__name__)
    return SecretsError(f"{action} on {on} failed: {type(error).__name__}: {reason}")


def _of_answer(code: str, said: str, status: int, action: str, on: str, endpoint: str) -> Exception:
    if code in _UNKNOWN_CREDENTIALS:
        return CredentialsError(
            f"{endpoint} does not accept the AWS credentials ({code}: {said}): renew them, or "
            "choose others with AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if code.startswith("AccessDenied") or status == 403:
        return AccessDenied(action, on, said)
    if code == "InvalidKeyId":
        return ContextError(f"CONDUCTO_SECRETS_KMS_KEY_ID is no key that can be used: {said}")
    if code in _THROTTLED:
        return RemoteError(
            f"{action} on {on} was throttled, again and again ({code}): repeat it later",
            status,
            code,
        )
    return RemoteError(
        f"{action} on {on} failed ({status} {code}: {said}). Where there is no Parameter Store, "
        "set CONDUCTO_SECRETS_PATH=none",
        status,
        code,
    )


def _without(hidden: str, text: str) -> str:
    masker = Masker([hidden])
    text = (masker.feed(text.encode()) + masker.flush()).decode(errors="replace")
    return " ".join(text.split())[:_REASON_CHARS_MAX]


_asking = contextvars.ContextVar("_asking", default=False)


class _NotWhileAsking(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _asking.get()


_filter = _NotWhileAsking()


@contextmanager
def _unlogged() -> Iterator[None]:
    """botocore logs whole requests and replies for who debugs it: not those of this block."""
    for name in list(logging.Logger.manager.loggerDict):
        if name.partition(".")[0] in ("boto3", "botocore"):
            logging.getLogger(name).addFilter(_filter)
    token = _asking.set(True)
    try:
        yield
    finally:
        _asking.reset(token)
