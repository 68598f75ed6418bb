"""One process's way to one bucket, by botocore, which is what boto3 is made of: to load the rest of
boto3, which nothing here uses, would take half as long again.

What a store lives on goes past botocore's client, which takes longer to make than all that a short
process does, and for each request twice the CPU of its parts: here the URL and the region are found
once (`address`), and each request (`plain`) is signed by botocore's signer and sent by botocore's
HTTP session. Credentials are the session's, asked for at each request, so that they are refreshed
as they expire.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import html
import http.client
import os
import re
import socket
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

import botocore.session
import urllib3.exceptions
from botocore import exceptions
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.loaders import create_loader
from botocore.parsers import ResponseParserError
from botocore.utils import get_environ_proxies

from castore import __version__
from castore.errors import CredentialsError, RemoteError
from castore.s3.client.address import address_of, is_aws, plain_address
from castore.s3.client.body import Buffers, checksum_header
from castore.s3.client.deadline import deadline_here
from castore.s3.client.faults import Broken, Late, Refused
from castore.s3.client.http import HttpSession, read_body, says_its_end
from castore.s3.client.plain import CRC32, Answer, Plain, plain_request
from castore.s3.client.settings import S3Settings, checked_endpoint
from castore.system.locks import Lock
from castore.system.translated import Translated
from castore.urls import redacted

ERROR_BYTES_MAX = 1 << 16
REPLY_BYTES_MAX = (
    32 << 20
)  # in XML: a page of 1,000 keys of 1,024 bytes, each byte as %xx, and more

# Keeps what it parsed: the second client of a process, or the first of a forked child, takes 20 ms
# and not 150.
_LOADER = create_loader()

_NOT_SENT = (
    exceptions.EndpointConnectionError,
    exceptions.ConnectTimeoutError,
    exceptions.ProxyConnectionError,
)
_BROKEN = (
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
    ResponseParserError,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
)
_NO_CREDENTIALS = (
    exceptions.CredentialRetrievalError,
    exceptions.MetadataRetrievalError,
    exceptions.NoAuthTokenError,
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.ProfileNotFound,
    exceptions.RefreshWithMFAUnsupportedError,
    exceptions.SSOError,
    exceptions.TokenRetrievalError,
    exceptions.UnknownCredentialError,
)
_OBJECT = re.compile(r"^\w+\(host='\[?([^']*?)\]?', port=(\w+)\): ")  # urllib3's, since its 2.0
_NOISE = re.compile(r"Failed to establish a new connection: |\[Errno -?[0-9]+\] ")
_CODE = re.compile(r"<Code>\s*([^<\s]{1,100})\s*</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_REGION = re.compile(r"<Region>\s*([a-z0-9-]{1,40})\s*</Region>")


class Connection:
    """Thread-safe. Its methods raise Refused and Broken, and CredentialsError."""

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        with converted(settings):
            self._session = session = session_for(settings)
            credentials = session.get_credentials()
            if credentials is None:
                raise exceptions.NoCredentialsError
            self._credentials = credentials
            self._signing = _signing(session)
            self._made: Any = None
            self._lock = Lock()
            address = plain_address(session, settings)
            if address is None:
                address = address_of(self._client, settings.bucket)
        self.endpoint, self._base, self.region = address
        kind = settings.upload_checksum
        if kind == "auto":
            kind = "crc32" if is_aws(self.endpoint) else "md5"
        self._checksum = kind
        self._http = HttpSession(
            verify=session.get_config_variable("ca_bundle")
            or os.environ.get("REQUESTS_CA_BUNDLE", True),
            proxies=get_environ_proxies(self._base),
            timeout=(settings.connect_timeout_s, settings.read_timeout_s),
            max_pool_connections=settings.max_concurrency,
            socket_options=[
                (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            ],
        )

    @property
    def _client(self) -> Any:
        """botocore's, made when it is first needed."""
        with self._lock:
            if self._made is None:
                self._made = _client(self._session, self._settings)
                # What it sends goes the same way as what is sent past it, so that it ends.
                self._made.meta.events.register(
                    "before-send.s3", self._send, unique_id="castore-send"
                )
            return self._made

    def _send(self, request: Any, **_: Any) -> Any:
        deadline = deadline_here()
        # It is signed: what is sent was signed in time, whenever it lands.
        if deadline is not None and deadline.is_late():
            raise Late
        return self._http.send_whole(request, REPLY_BYTES_MAX)

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """What the client's method of this name does, without any retry."""
        kind = self._checksum
        if operation == "delete_objects" and kind == "none":  # S3 demands one
            kind = "md5"
        asked = plain_request(operation, parameters, partial(checksum_header, kind))
        if asked is not None:
            return self._plain(asked)
        with converted(self._settings, operation.title().replace("_", "")), parsed:
            method = getattr(self._client, operation)
            reply: dict[str, Any] = method(Bucket=self._settings.bucket, **parameters)
            return reply

    def get(self, key: str, headers: dict[str, str], bytes_max: int) -> Answer:
        """GET of the whole key: 200, 206 or 304. A server that ignores a Range is not listened to:
        the body is then empty, and there is no Content-Range; nor is one that sends more than
        `bytes_max`."""
        with converted(self._settings):
            request = self._signed("GET", self._base + quote(key, safe="/~"), headers, b"")
            response = self._http.send(request)
            status, raw = response.status_code, response.raw
            if status in (200, 206):
                if (
                    "Range" in headers
                    and "content-range" not in response.headers
                    and says_its_end(response.headers)
                ):
                    raw.close()
                    return Answer(status, response.headers, b"")
                return Answer(status, response.headers, read_body(raw, response.headers, bytes_max))
            said = raw.read(ERROR_BYTES_MAX, decode_content=False)
            if raw.read(1):
                raw.close()
        if status == 304:
            return Answer(status, response.headers, b"")
        raise _refused(status, response.headers, said)

    def _plain(self, asked: Plain) -> dict[str, Any]:
        if asked.key:
            url = self._base + quote(asked.key, safe="/~")
        else:  # of a bucket that is named in the path, that has no slash behind it, as the client's
            url = self._base if urlsplit(self._base).path == "/" else self._base[:-1]
        if asked.query:
            url = f"{url}?{asked.query}"
        with converted(self._settings):
            request = self._signed(asked.method, url, asked.headers, asked.body)
            response = self._send(request)
            answer = Answer(response.status_code, response.headers, response.content)
        if not 200 <= answer.status < 300:
            raise _refused(*answer)
        with parsed:
            found = asked.understood(answer)
        found["ResponseMetadata"] = {"HTTPHeaders": answer.headers}
        return found

    def _signed(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Buffers
    ) -> Any:
        named = {**headers, "User-Agent": f"castore/{__version__}"}
        request = AWSRequest(method, url, headers=named, data=body, stream_output=True)
        # Under TLS the body of a PUT that has a checksum is not signed as well, as boto3's is not,
        # unless the profile says otherwise.
        request.context["has_streaming_input"] = method == "PUT"
        if self._signing is not None:
            request.context["client_config"] = self._signing
        if CRC32 in headers:
            request.context["checksum"] = {"request_algorithm": {"in": "header", "name": CRC32}}
        try:
            credentials = self._credentials.get_frozen_credentials()
        except (RuntimeError, exceptions.ClientError) as error:  # refreshed, to no avail
            raise exceptions.CredentialRetrievalError(
                provider=self._credentials.method, error_msg=str(error)
            ) from error
        S3SigV4Auth(credentials, "s3", self.region).add_auth(request)
        return request.prepare()

    def close(self) -> None:
        with self._lock:
            if self._made is not None:
                self._made.close()
        self._http.close()


def session_for(settings: S3Settings) -> Any:
    """botocore's, with the profile and the region that the settings name."""
    session = botocore.session.Session(profile=settings.profile)
    session.register_component("data_loader", _LOADER)
    if settings.region is not None:
        session.set_config_variable("region", settings.region)
    return session


def _signing(session: Any) -> Config | None:
    """What the profile says of signing bodies, as the signer takes it; None if it says nothing."""
    enabled = _of_profile(session).get("payload_signing_enabled")
    return None if enabled is None else Config(s3={"payload_signing_enabled": enabled})


def _of_profile(session: Any) -> Mapping[str, Any]:
    """The section `s3` of the profile."""
    return session.get_config_variable("s3") or {}


def _client(session: Any, settings: S3Settings) -> Any:
    def made(endpoint_url: str | None) -> Any:
        style = settings.addressing_style
        if style == "auto":
            style = _of_profile(session).get("addressing_style", style)
        if style not in ("path", "virtual"):
            # For "auto", botocore presigns URLs of AWS's global host, which newer regions are not
            # behind, and new buckets are not yet.
            style = "virtual" if endpoint_url is None else "path"
        config = Config(
            signature_version="s3v4",
            retries={"total_max_attempts": 1, "mode": "standard"},
            s3={"addressing_style": style},
            connect_timeout=settings.connect_timeout_s,
            read_timeout=settings.read_timeout_s,
            max_pool_connections=settings.max_concurrency,
            tcp_keepalive=True,
            user_agent_extra="castore",
            # As trailers, or in replies, they are what servers that are only like S3 stumble over;
            # `call` has its own, as a header, and all that is read is checked by castore.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return session.create_client("s3", endpoint_url=endpoint_url, config=config)

    client = made(settings.endpoint_url)
    endpoint = client.meta.endpoint_url
    if settings.endpoint_url is None and not is_aws(endpoint):  # AWS's configuration has one
        client.close()
        client = made(checked_endpoint(endpoint, "endpoint_url of AWS's configuration"))
    client.meta.events.register_last("before-parameter-build.s3", _stay)
    client.meta.events.register_last("before-call.s3", _do_not_ask)
    return client


def _stay(context: dict[str, Any], **_: Any) -> None:
    """Else the client follows a bucket into another region, with requests of its own."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def _do_not_ask(params: dict[str, Any], **_: Any) -> None:
    """Else a body that is a file waits for a round trip, or a second, for leave to be sent."""
    params["headers"].pop("Expect", None)


def _refused(status: int, headers: Mapping[str, str], body: bytes) -> Refused:
    text = body[:ERROR_BYTES_MAX].decode("utf-8", "replace")
    code, message, region = _CODE.search(text), _MESSAGE.search(text), _REGION.search(text)
    found = {name.lower(): value for name, value in headers.items()}
    if region is not None:
        found.setdefault("x-amz-bucket-region", region[1])
    return Refused(
        status, code[1] if code else "", html.unescape(message[1]) if message else "", found
    )


def _not_understood(error: BaseException) -> Broken | None:
    stumbled = isinstance(error, (ValueError, KeyError, TypeError, OverflowError, RecursionError))
    if not stumbled or isinstance(error, exceptions.ParamValidationError):  # a bug of ours
        return None
    return Broken(f"the reply can't be understood: {error!r}")


# A reply that botocore's parsers stumble over is no reply.
parsed = Translated(_not_understood)


def converted(settings: S3Settings, operation: str = "") -> Translated:
    """The SDK's many exceptions as the few that `faults` knows."""
    return Translated(partial(_converted, settings=settings, operation=operation))


def _converted(error: BaseException, settings: S3Settings, operation: str) -> Exception | None:
    if isinstance(error, _NO_CREDENTIALS):
        return _no_credentials(settings, redacted(str(error)))
    if isinstance(error, exceptions.ClientError):
        if error.operation_name != operation:  # a role's credentials were asked for on the way
            return _no_credentials(settings, redacted(str(error)))
        return _of_client(error)
    if isinstance(error, _NOT_SENT):
        return Broken(_reason(error), sent=False)
    if isinstance(error, exceptions.SSLError):
        untrusted = "CERTIFICATE_VERIFY_FAILED" in str(error)
        return Broken(_reason(error), sent=not untrusted, hopeless=untrusted)
    if isinstance(error, _BROKEN):
        return Broken(_reason(error))
    is_ours = isinstance(error, exceptions.ParamValidationError)  # a bug
    if is_ours or not isinstance(error, exceptions.BotoCoreError):
        return None
    return RemoteError(f"{settings.url}: {redacted(str(error))}")


def _of_client(error: exceptions.ClientError) -> Refused:
    said = error.response.get("Error", {})
    metadata = error.response.get("ResponseMetadata", {})
    headers = dict(metadata.get("HTTPHeaders", {}))
    if said.get("Region"):
        headers.setdefault("x-amz-bucket-region", said["Region"])
    status = int(metadata.get("HTTPStatusCode", 0))
    code = str(said.get("Code", ""))
    return Refused(
        status,
        "" if code == str(status) else code,  # botocore's stand-in where there is none
        str(said.get("Message") or ""),
        headers,
    )


def _no_credentials(settings: S3Settings, reason: str) -> CredentialsError:
    return CredentialsError(
        f"no AWS credentials for {settings.url} ({reason}): set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or choose a profile of ~/.aws with profile="
    )


def _reason(error: Exception) -> str:
    """The innermost words, and of which host they are: what urllib3 and botocore wrap around them
    names objects."""
    while True:
        said = error.args[-1] if error.args else None
        for inner in (
            getattr(error, "kwargs", {}).get("error"),
            getattr(error, "reason", None),
            said,
        ):
            if isinstance(inner, Exception):
                error = inner
                break
        else:
            break
    text = said if isinstance(said, str) and said else str(error) or type(error).__name__
    text = _OBJECT.sub(_host, text.rpartition(">: ")[2])
    return redacted(_NOISE.sub("", text))


def _host(named: re.Match[str]) -> str:
    host = f"[{named[1]}]" if ":" in named[1] else named[1]
    return f"{host}:{named[2]}: "
