"""A proxy in front of an S3 server on this machine: it counts, and it makes the network longer.

    python bench/proxy.py 127.0.0.1:9000 --rtt 20ms --mbps 50

Every exchange is recorded (method, key, bytes, times). `rtt` is added once to each exchange, and
once to each new connection, as the handshake would; `mbps`, megabytes a second, caps all
connections together, in each direction. It speaks HTTP/1.1 without TLS, one thread a connection; it
models no loss and no slow start. As a command it prints its port, then answers each line on its
standard input with the totals as JSON: `totals`, or `clear`, which also sets them to zero.

`FaultProxy`, in the tests, adds faults by overriding `respond`.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

BLOCK_BYTES = 1 << 16
WINDOW_BYTES = 1 << 18
HEAD_BYTES_MAX = 1 << 16
LATE_S = 0.003


@dataclass
class Exchange:
    """One request and what came of it; bytes are those of the bodies."""

    method: str
    key: str  # the path as sent, decoded: /bucket/key
    query: str
    headers: dict[str, str]  # names in lower case
    began: float
    client: int  # the port of the connection that it came on
    status: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    answered: float = 0.0  # before the client could see it
    ended: float = 0.0
    head: bytes = field(default=b"", repr=False)  # of the request, to be forwarded

    @property
    def kind(self) -> str:
        """The method, or LIST."""
        if self.method == "GET" and "list-type=" in self.query:
            return "LIST"
        return self.method


@dataclass(frozen=True)
class Response:
    """The server's, whole."""

    head: bytes
    body: bytes  # as framed, chunks and all
    status: int


class Gone(Exception):
    """The other end closed the connection."""


class Proxy:
    """Listens at `url` until it is closed."""

    def __init__(
        self, upstream: str, *, rtt_s: float = 0.0, bytes_per_s: float | None = None
    ) -> None:
        host, _, port = upstream.rpartition("//")[2].rstrip("/").partition(":")
        self.upstream = (host, int(port or 80))
        self.rtt_s = rtt_s
        self.up, self.down = _Throttle(bytes_per_s), _Throttle(bytes_per_s)
        self.exchanges: list[Exchange] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._listener = socket.socket()
        if bytes_per_s is not None:
            # Else the kernel takes in tens of megabytes at once, and then nothing for seconds.
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW_BYTES)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(256)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def await_clients(self, timeout_s: float = 30.0) -> None:
        """Until all clients are gone, and what they had sent by then was answered by the server, or
        never will be: to be called when their processes are dead."""
        ours = http.client.HTTPConnection("127.0.0.1", self.port)
        ours.request("GET", "/")  # once it is answered all connections before it are taken
        ours.getresponse().read()
        ours.close()
        for thread in self._threads[1:]:
            thread.join(timeout_s)
            if thread.is_alive():
                raise TimeoutError(f"a client of the proxy is there after {timeout_s} s")
        del self._threads[1:]

    # ------------------------------------------------------------ what was counted

    def clear(self) -> None:
        self.exchanges = []

    def matching(self, kind: str = "", pattern: str = "") -> list[Exchange]:
        """The exchanges of this kind ("" for all) in whose key the pattern is found."""
        return [
            exchange
            for exchange in list(self.exchanges)
            if kind in ("", exchange.kind) and re.search(pattern, exchange.key)
        ]

    def count(self, kind: str = "", pattern: str = "") -> int:
        return len(self.matching(kind, pattern))

    def totals(self) -> dict[str, dict[str, int]]:
        """Requests and body bytes by kind."""
        found: dict[str, dict[str, int]] = {}
        for exchange in list(self.exchanges):
            row = found.setdefault(exchange.kind, {"requests": 0, "sent": 0, "received": 0})
            row["requests"] += 1
            row["sent"] += exchange.sent_bytes
            row["received"] += exchange.received_bytes
        return found

    # ------------------------------------------------------------ serving

    def respond(self, exchange: Exchange, connection: Connection) -> None:
        """Answer one request, whose body has not been read."""
        connection.relay(exchange)

    def track(self, one: socket.socket) -> None:
        with self._lock:
            self._open.add(one)

    def untrack(self, one: socket.socket) -> None:
        with self._lock:
            self._open.discard(one)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        connection = Connection(self, client)
        with contextlib.suppress(Gone, OSError):
            if self.rtt_s:
                time.sleep(self.rtt_s)
            while not self._closed:
                exchange = connection.next_request()
                if self.rtt_s:
                    time.sleep(self.rtt_s / 2)
                self.exchanges.append(exchange)
                try:
                    self.respond(exchange, connection)
                finally:
                    exchange.ended = time.perf_counter()
        connection.close()


class Connection:
    """A client's connection, and the one to the server on its behalf."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self.proxy = proxy
        self.upstream = Upstream(proxy)
        self._client = _Stream(client)
        self._port: int = client.getpeername()[1]
        proxy.track(client)

    def next_request(self) -> Exchange:
        head = self._client.head()
        line, headers = _parse(head)
        method, target, _ = line.split(" ", 2)
        parts = urlsplit(target)
        if headers.pop("expect", None):  # it isn't signed; we take the body, whatever it is
            self._client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = re.sub(rb"\r\nexpect:[^\r]*", b"", head, flags=re.IGNORECASE)
        began = time.perf_counter()
        key = unquote(parts.path)
        return Exchange(method, key, parts.query, headers, began, self._port, head=head)

    def request_blocks(self, exchange: Exchange) -> Iterator[bytes]:
        """The request's body, as framed."""
        for block in self._client.body(exchange.headers, until_end=False):
            self.proxy.up.take(len(block))
            exchange.sent_bytes += len(block)
            yield block

    def relay(self, exchange: Exchange) -> None:
        """Forward the request and send back the answer, block by block."""
        head, status, blocks = self.upstream.ask(exchange, self.request_blocks(exchange))
        exchange.status = status
        if self.proxy.rtt_s:
            time.sleep(self.proxy.rtt_s / 2)
        exchange.answered = time.perf_counter()
        self._client.send(head)
        for block in blocks:
            self.proxy.down.take(len(block))
            exchange.received_bytes += len(block)
            self._client.send(block)
        if not _persists(head):
            raise Gone

    def send(self, raw: bytes) -> None:
        self._client.send(raw)

    def await_end(self, timeout_s: float) -> None:
        """Wait until the client gives up, or the time is over."""
        self._client.await_end(timeout_s)

    def reset(self) -> None:
        """Close towards the client with a RST. Raises Gone."""
        linger = struct.pack("ii", 1, 0)
        self._client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._client.socket.close()
        raise Gone

    def close(self) -> None:
        self.proxy.untrack(self._client.socket)
        self._client.socket.close()
        self.upstream.close()


class Upstream:
    """A connection to the server, made when it is needed."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._server: _Stream | None = None

    def ask(
        self, exchange: Exchange, blocks: Iterator[bytes]
    ) -> tuple[bytes, int, Iterator[bytes]]:
        """The answer's head and status, and its body as it comes, framing and all."""
        if self._server is None:
            made = socket.create_connection(self._proxy.upstream)
            self._proxy.track(made)
            self._server = _Stream(made)
        server = self._server
        server.send(exchange.head)
        for block in blocks:
            server.send(block)
        head = server.head()
        line, headers = _parse(head)
        status = int(line.split(" ")[1])
        if status == 200 and "content-range" in headers:  # rclone's, which obstore refuses
            status = 206
            head = head.replace(b" 200 OK", b" 206 Partial Content", 1)
        if exchange.method == "HEAD" or status in (204, 304):
            return head, status, self._ending(head, iter(()))
        return head, status, self._ending(head, server.body(headers, until_end=True))

    def forward(self, exchange: Exchange, body: bytes) -> Response:
        """The server's answer, whole, which is not sent on."""
        head, status, blocks = self.ask(exchange, iter([body] if body else []))
        return Response(head, b"".join(blocks), status)

    def close(self) -> None:
        if self._server is not None:
            self._proxy.untrack(self._server.socket)
            self._server.socket.close()
            self._server = None

    def _ending(self, head: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
        yield from blocks
        if not _persists(head):
            self.close()


class _Stream:
    """A socket, read by heads and bodies."""

    def __init__(self, one: socket.socket) -> None:
        self.socket = one
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def send(self, raw: bytes) -> None:
        self.socket.sendall(raw)

    def await_end(self, timeout_s: float) -> None:
        self.socket.settimeout(timeout_s)
        with contextlib.suppress(OSError):
            self.socket.recv(1)
        self.socket.settimeout(None)

    def head(self) -> bytes:
        return self._until(b"\r\n\r\n")

    def body(self, headers: dict[str, str], *, until_end: bool) -> Iterator[bytes]:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            yield from self._chunks()
        elif "content-length" in headers:
            yield from self._exactly(int(headers["content-length"]))
        elif until_end:
            while block := self._read(BLOCK_BYTES):
                yield block

    def _chunks(self) -> Iterator[bytes]:
        while True:
            line = self._until(b"\r\n")
            yield line
            size = int(line.split(b";")[0], 16)
            yield from self._exactly(size + 2)
            if size == 0:
                return

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            block = self._read(min(size, BLOCK_BYTES))
            if not block:
                raise Gone
            size -= len(block)
            yield block

    def _until(self, mark: bytes) -> bytes:
        while (at := self._buffer.find(mark)) < 0:
            if len(self._buffer) > HEAD_BYTES_MAX:
                raise Gone
            more = self.socket.recv(BLOCK_BYTES)
            if not more:
                raise Gone
            self._buffer += more
        found = self._buffer[: at + len(mark)]
        self._buffer = self._buffer[at + len(mark) :]
        return found

    def _read(self, size: int) -> bytes:
        if self._buffer:
            block, self._buffer = self._buffer[:size], self._buffer[size:]
            return block
        return self.socket.recv(size)


class _Throttle:
    """A link that all connections share: what is taken is sent one after the other.

    A sleep ends late, and the next block comes late by that: a link that became free within
    LATE_S had it waiting, or a single connection would get half of what was asked for. After a real
    pause, the time that passed is gone.
    """

    def __init__(self, bytes_per_s: float | None) -> None:
        self._rate = bytes_per_s
        self._free_at = 0.0
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        if self._rate is None:
            return
        now = time.perf_counter()
        with self._lock:
            if now - self._free_at > LATE_S:
                self._free_at = now
            self._free_at += size / self._rate
            wait_s = self._free_at - now
        if wait_s > 0:
            time.sleep(wait_s)


def _persists(head: bytes) -> bool:
    """Whether the connection goes on after this answer."""
    line, headers = _parse(head)
    framed = "content-length" in headers or "transfer-encoding" in headers
    bodyless = line.split(" ")[1] in ("204", "304")
    return (framed or bodyless) and headers.get("connection", "").lower() != "close"


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    line, *rest = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (each.partition(":") for each in rest)
    return line, {name.strip().lower(): value.strip() for name, _, value in pairs}


class ProxyProcess:
    """A Proxy in a process of its own, so that it takes no time from what is measured."""

    def __init__(
        self, upstream: str, *, rtt_s: float = 0.0, bytes_per_s: float | None = None
    ) -> None:
        command = [sys.executable, __file__, upstream, "--rtt", f"{rtt_s * 1000}ms"]
        if bytes_per_s is not None:
            command += ["--mbps", str(bytes_per_s / 1e6)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def totals(self) -> dict[str, dict[str, int]]:
        return self._ask("totals")

    def clear(self) -> dict[str, dict[str, int]]:
        """The totals so far; they begin again at zero."""
        return self._ask("clear")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def _ask(self, line: str) -> dict[str, dict[str, int]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer: dict[str, dict[str, int]] = json.loads(self._process.stdout.readline())
        return answer


def parse_seconds(text: str) -> float:
    """`20ms`, `0.5s`."""
    match = re.fullmatch(r"([0-9.]+)(ms|s)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 20ms or 1.5s")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="A counting proxy with a slower network.")
    parser.add_argument("upstream", help="host:port of the server")
    parser.add_argument("--rtt", type=parse_seconds, default=0.0, help="such as 20ms")
    parser.add_argument("--mbps", type=float, help="megabytes a second, each way")
    given = parser.parse_args()
    rate = None if given.mbps is None else given.mbps * 1e6
    with Proxy(given.upstream, rtt_s=given.rtt, bytes_per_s=rate) as proxy:
        print(proxy.port, flush=True)
        for line in sys.stdin:
            print(json.dumps(proxy.totals()), flush=True)
            if line.strip() == "clear":
                proxy.clear()


if __name__ == "__main__":
    main()
