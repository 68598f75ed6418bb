"""A bucket behind a proxy, and how its servers fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fault_proxy import (
    FaultProxy,
)
from servers import QUICK, Server

from castore.s3.client.bucket import Bucket

BODY = bytes(range(256)) * 40


@pytest.fixture
def proxied(
    moto_server: Server, proxy: FaultProxy, request: pytest.FixtureRequest
) -> Iterator[Bucket]:
    """A bucket through the proxy, with something in it, and nothing counted yet."""
    timeout_s = 0.6 if "stall" in request.node.name else 30.0
    settings = moto_server.settings(endpoint_url=proxy.url, read_timeout_s=timeout_s)
    with Bucket(settings, backoff=QUICK) as bucket:
        bucket.put("there", BODY, idempotent=True)
        proxy.clear()
        yield bucket


READS: dict[str, Callable[[Bucket], object]] = {
    "GET": lambda bucket: bucket.get("there"),
    "GET part": lambda bucket: bucket.get("there", byte_range=(100, 9000)),
    "HEAD": lambda bucket: bucket.head("there").etag,
    "LIST": lambda bucket: list(bucket.list()),
}


IDEMPOTENT: dict[str, Callable[[Bucket], object]] = {
    "PUT": lambda bucket: bucket.put("new", b"new", idempotent=True).etag,
    "POST": lambda bucket: bucket.delete_many(["there", "not there"]),
}


ONCE: dict[str, Callable[[Bucket], object]] = {
    "PUT": lambda bucket: bucket.put("new", b"new"),
    "PUT none": lambda bucket: bucket.put("new", b"new", if_none_match=True),
    "DELETE": lambda bucket: bucket.delete("there"),
}
