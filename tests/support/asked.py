"""What was asked of an S3 server, counted by the proxy before it."""

from __future__ import annotations

from collections import Counter
from urllib.parse import parse_qs

from fault_proxy import FaultProxy
from proxy import Exchange


def requests(proxy: FaultProxy) -> list[str]:
    """What was asked since it was asked last, as `GET names`: sorted, with how often."""
    asked = Counter(f"{exchange.kind} {_kind_of_key(exchange)}" for exchange in proxy.exchanges)
    proxy.clear()
    return sorted(f"{kind}{'' if count == 1 else f' x{count}'}" for kind, count in asked.items())


def _kind_of_key(exchange: Exchange) -> str:
    if exchange.kind == "POST":
        return "delete"
    listed = parse_qs(exchange.query).get("prefix")
    return (listed[0] if listed else exchange.key.partition("/")[2].partition("/")[2]).split("/")[1]
