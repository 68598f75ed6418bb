"""moto over HTTP, its S3 in half of the time that its own server takes: that one looks with every
request for the service that is meant, and has a connection and a thread for each.

Connections are kept, as S3 keeps them. Requests are atomic, as those of S3 are: moto checks a
precondition and writes in two steps, which two writers could both pass.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from io import BytesIO
from typing import Any

from memory_s3 import MemoryS3, Stored
from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import FakeKey, s3_backends
from werkzeug.exceptions import InternalServerError
from werkzeug.serving import WSGIRequestHandler, make_server

BODILESS = ("1", "204", "304")


@contextmanager
def serving() -> Iterator[str]:
    """Its URL, as long as it is served."""
    app = _Services()
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


class _Services:
    """S3, unless a request is signed for another service."""

    def __init__(self) -> None:
        self._s3 = create_backend_app("s3")
        self._others = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        signed = environ.get("HTTP_AUTHORIZATION", "")
        app = self._s3 if not signed or "/s3/" in signed else self._others
        return app(environ, start_response)


def copied(bucket: str) -> MemoryS3:
    """What a bucket holds at this moment, where no request takes any time."""
    server = MemoryS3()
    server.clock = time.time()
    for key, object_ in list(s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket].keys.items()):
        if isinstance(object_, FakeKey):  # and not the mark of a deletion
            modified = object_.last_modified.replace(tzinfo=UTC).timestamp()
            server.objects[key] = Stored(object_.value, object_.etag, modified)
    return server


class _Handler(WSGIRequestHandler):
    """One connection."""

    disable_nagle_algorithm = True
    wbufsize = -1  # a head and a body are sent together
    _turn = threading.Lock()

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Nothing: pytest would keep a line for each."""

    def run_wsgi(self) -> None:
        """Answer one request, when its body is here: the next begins behind it."""
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.wfile.flush()
        environ = self.make_environ()
        chunked = environ.get("wsgi.input_terminated", False)
        size = -1 if chunked else int(environ.get("CONTENT_LENGTH", 0))
        environ["wsgi.input"] = BytesIO(environ["wsgi.input"].read(size))
        with self._turn:
            status, headers, body = _answered(self.server.app, environ)
        self.send_response(*status)
        for name, value in headers:
            self.send_header(name, value)
        bodiless = self.command == "HEAD" or str(status[0]).startswith(BODILESS)
        if not bodiless and "content-length" not in {name.lower() for name, _ in headers}:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def _answered(app: Any, environ: dict[str, Any]) -> tuple[tuple[int, str], list[Any], bytes]:
    said: list[tuple[str, list[Any]]] = []

    def start_response(status: str, headers: list[Any], failure: Any = None) -> None:
        said.append((status, headers))

    try:
        body = b"".join(app(environ, start_response))
    except Exception as failure:  # moto's own, which no reply tells of
        body = b"".join(InternalServerError(str(failure))(environ, start_response))
    status, headers = said[-1]
    code, _, words = status.partition(" ")
    return (int(code), words), headers, body
