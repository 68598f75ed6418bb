"""botocore's HTTP session, with replies that end: each is read whole, up to a bound, and its
connection is known to the request's deadline."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
    AWSResponse,
)
from botocore.httpsession import URLLib3Session

from castore.s3.client.deadline import deadline_here, note_moved
from castore.s3.client.faults import Broken
from castore.wording import counted

PIECE_BYTES = 64 << 10


class _Known:
    """A connection that its request's deadline knows."""

    def connect(self) -> None:
        self._note()
        super().connect()  # type: ignore[misc]
        self._note()

    def request(self, *arguments: Any, **named: Any) -> Any:
        self._note()
        return super().request(*arguments, **named)  # type: ignore[misc]

    def _note(self) -> None:
        deadline = deadline_here()
        if deadline is not None:
            deadline.use(self)


class _Connection(_Known, AWSHTTPConnection):  # type: ignore[misc]
    pass


class _SecureConnection(_Known, AWSHTTPSConnection):  # type: ignore[misc]
    pass


class _Pool(AWSHTTPConnectionPool):  # type: ignore[misc]
    ConnectionCls = _Connection


class _SecurePool(AWSHTTPSConnectionPool):  # type: ignore[misc]
    ConnectionCls = _SecureConnection


class HttpSession(URLLib3Session):  # type: ignore[misc]
    """botocore's, with connections that their request's deadline knows."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}  # of proxies, too
        self._manager.pool_classes_by_scheme = self._pool_classes_by_scheme

    def send_whole(self, request: Any, bytes_max: int) -> AWSResponse:
        """As `send`, with a reply that was read whole. Raises Broken."""
        request.stream_output = True
        response = self.send(request)
        if request.method == "HEAD" or response.status_code in (204, 304):
            body: bytes = response.raw.read()
        else:
            body = read_body(response.raw, response.headers, bytes_max, to_close=True)
        return AWSResponse(response.url, response.status_code, response.headers, _Read(body))


class _Read:
    """A body that was read."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self) -> list[bytes]:
        return [self._body]


def read_body(
    raw: Any, headers: Mapping[str, str], bytes_max: int, *, to_close: bool = False
) -> bytes:
    """What urllib3's response `raw` has, all of it. Raises Broken where it is cut short, or longer
    than `bytes_max`, or does not say how long it is, unless it may end with the connection."""
    try:
        return _whole(raw, headers, bytes_max, to_close=to_close)
    except BaseException:
        raw.close()  # what is left of it is in nobody's way
        raise


def _whole(raw: Any, headers: Mapping[str, str], bytes_max: int, *, to_close: bool) -> bytes:
    length = _length(headers)
    if length is not None and length > bytes_max:
        raise Broken(f"the reply has {length} bytes, and {bytes_max} at most are taken")
    if length is None and not to_close and not _is_chunked(headers):
        raise Broken("the reply does not say how long it is")
    pieces, size = [], 0
    while piece := raw.read(PIECE_BYTES, decode_content=False):
        pieces.append(piece)
        size += len(piece)
        note_moved(len(piece))
        if size > bytes_max:
            raise Broken(f"the reply has more than the {bytes_max} bytes that are taken")
    if length is not None and size != length:
        raise Broken(f"the reply ended after {size:,} of {counted(length, 'byte')}")
    return b"".join(pieces)


def says_its_end(headers: Mapping[str, str]) -> bool:
    """Not if the head was cut: what would follow is as good as unsaid, too."""
    return "content-length" in headers or _is_chunked(headers)


def _is_chunked(headers: Mapping[str, str]) -> bool:
    return headers.get("transfer-encoding", "").lower() == "chunked"


def _length(headers: Mapping[str, str]) -> int | None:
    said = headers.get("content-length")
    if said is None:
        return None
    if not (said.isascii() and said.isdigit() and len(said) < 20):
        raise Broken(f"the reply says that it has {said[:40]!r} bytes")
    return int(said)
