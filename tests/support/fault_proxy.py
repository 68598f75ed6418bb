"""A proxy in front of an S3 server that fails requests by rule, and counts them exactly."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))

from proxy import Connection, Exchange, Gone, Proxy, Upstream

__all__ = [
    "Connection",
    "Exchange",
    "FaultProxy",
    "Rule",
    "answer",
    "corrupt",
    "cut",
    "late",
    "reset",
    "stall",
    "twice",
]

STALL_S = 30.0

# What is done to a request instead of relaying it.
Fault: TypeAlias = Callable[[Exchange, Connection], None]


@dataclass
class Rule:
    """Applies `fault` to `times` matches, from the nth (from 1)."""

    kind: str  # a method, LIST, or "" for any
    pattern: re.Pattern[str]
    fault: Fault
    nth: int
    times: int
    matched: int = 0
    applied: int = 0


class FaultProxy(Proxy):
    def __init__(self, upstream: str) -> None:
        self.rules: list[Rule] = []
        self._rules_lock = threading.Lock()
        self.held: list[Callable[[], None]] = []  # requests that are late
        super().__init__(upstream)

    def land(self) -> None:
        """Let the server see what is late."""
        while self.held:
            self.held.pop(0)()

    def inject(
        self, kind: str, pattern: str, fault: Fault, *, nth: int = 1, times: int = 1
    ) -> Rule:
        rule = Rule(kind, re.compile(pattern), fault, nth, times)
        self.rules.append(rule)
        return rule

    def respond(self, exchange: Exchange, connection: Connection) -> None:
        fault = self._fault_for(exchange)
        if fault is None:
            connection.relay(exchange)
        else:
            fault(exchange, connection)

    def _fault_for(self, exchange: Exchange) -> Fault | None:
        with self._rules_lock:
            for rule in self.rules:
                if rule.kind not in ("", exchange.kind) or not rule.pattern.search(exchange.key):
                    continue
                rule.matched += 1
                if rule.nth <= rule.matched < rule.nth + rule.times:
                    rule.applied += 1
                    return rule.fault
        return None


def answer(
    status: int,
    code: str = "",
    message: str = "said the proxy",
    *,
    headers: dict[str, str] | None = None,
    applied: bool = False,
    body: bytes | None = None,
) -> Fault:
    """Answer in the server's place; `applied`: after it did what was asked."""
    if body is None:
        xml = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>" if code else ""
        body = xml.encode()

    def fault(exchange: Exchange, connection: Connection) -> None:
        sent = _body(exchange, connection)
        if applied:
            connection.upstream.forward(exchange, sent)
        exchange.status = status
        lines = [f"HTTP/1.1 {status} Injected", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        content = b"" if exchange.method == "HEAD" or status in (204, 304) else body
        connection.send("\r\n".join(lines).encode() + b"\r\n\r\n" + content)

    return fault


def reset(*, applied: bool = False) -> Fault:
    """Reset the connection, before the server saw the request or instead of its reply."""

    def fault(exchange: Exchange, connection: Connection) -> None:
        sent = _body(exchange, connection)
        if applied:
            exchange.status = connection.upstream.forward(exchange, sent).status
        connection.reset()

    return fault


def stall(*, applied: bool = False, seconds: float = STALL_S) -> Fault:
    """Say nothing until the client gives up."""

    def fault(exchange: Exchange, connection: Connection) -> None:
        sent = _body(exchange, connection)
        if applied:
            exchange.status = connection.upstream.forward(exchange, sent).status
        connection.await_end(seconds)
        raise Gone

    return fault


def cut(share: float = 0.5, *, rst: bool = False) -> Fault:
    """Send the head and a share of the body, and close."""

    def fault(exchange: Exchange, connection: Connection) -> None:
        response = connection.upstream.forward(exchange, _body(exchange, connection))
        exchange.status = response.status
        connection.send(response.head + response.body[: int(len(response.body) * share)])
        if rst:
            time.sleep(0.05)  # a RST at once would take the body along
            connection.reset()
        raise Gone

    return fault


def corrupt() -> Fault:
    """Change one byte in the middle of the reply's body."""

    def fault(exchange: Exchange, connection: Connection) -> None:
        response = connection.upstream.forward(exchange, _body(exchange, connection))
        exchange.status = response.status
        wrong = bytearray(response.body)
        if wrong:
            wrong[len(wrong) // 2] ^= 0x20
        connection.send(response.head + bytes(wrong))

    return fault


def twice() -> Fault:
    """Pass the request on two times, as a balancer that lost the first reply does, and answer with
    the second reply."""

    def fault(exchange: Exchange, connection: Connection) -> None:
        sent = _body(exchange, connection)
        connection.upstream.forward(exchange, sent)
        response = connection.upstream.forward(exchange, sent)
        exchange.status = response.status
        connection.send(response.head + response.body)

    return fault


def late() -> Fault:
    """Reset the connection; the server sees the request once the proxy's `land` is called."""

    def fault(exchange: Exchange, connection: Connection) -> None:
        sent = _body(exchange, connection)
        proxy = connection.proxy

        def land() -> None:
            other = Upstream(proxy)
            exchange.status = other.forward(exchange, sent).status
            other.close()

        assert isinstance(proxy, FaultProxy)
        proxy.held.append(land)
        connection.reset()

    return fault


def _body(exchange: Exchange, connection: Connection) -> bytes:
    return b"".join(connection.request_blocks(exchange))
