"""Bucket on both servers, and on moto behind a proxy that fails requests."""

from __future__ import annotations

import base64
import gc
import hashlib
import itertools
import os
import pickle
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import (
    Connection,
    Exchange,
    Fault,
    FaultProxy,
    answer,
    corrupt,
    cut,
    reset,
    stall,
    twice,
)
from processes import free_port
from proxied import BODY, IDEMPOTENT, ONCE, READS
from servers import QUICK, Server

from castore.errors import (
    EndpointUnreachable,
    RemoteError,
)
from castore.s3.client import deadline, retries
from castore.s3.client import delete_version as deleting
from castore.s3.client.bucket import Bucket, KeyAbsent, OutcomeUnknown, PreconditionFailed
from castore.s3.client.delete_version import delete_version, etag_at
from castore.s3.client.faults import Broken
from castore.s3.client.put_once import put_once
from castore.s3.client.retries import Backoff
from castore.s3.client.settings import S3Settings
from castore.system.clock import boot_clock

ATTEMPTS = QUICK.attempts


# ---- the contract, on both servers ---------------------------------------------------------------


def test_put_get_head_delete(bucket: Bucket) -> None:
    before = time.time()
    put = bucket.put("a/b", BODY)
    assert (put.body, put.size) == (b"", len(BODY))
    assert put.etag.startswith('"')
    assert abs(put.date - before) < 5
    assert abs(bucket.clock_skew()) < 2
    got = bucket.get("a/b")
    assert (got.body, got.etag, got.size) == (BODY, put.etag, len(BODY))
    assert bucket.head("a/b")[:3] == (b"", put.etag, len(BODY))
    assert bucket.put("a/b", [b"of ", memoryview(b"several "), bytearray(b"parts")]).size == 16
    again = bucket.get("a/b")
    assert again.body == b"of several parts"
    bucket.delete("a/b")
    for read in (bucket.get, bucket.head):
        with pytest.raises(KeyAbsent) as caught:
            read("a/b")
        assert caught.value.key == "a/b"
    bucket.delete("a/b")


@pytest.mark.parametrize(
    ("begin", "end"), [(0, 1), (5, 5000), (0, len(BODY)), (len(BODY) - 1, len(BODY)), (9, 1 << 40)]
)
def test_ranges(bucket: Bucket, begin: int, end: int) -> None:
    put = bucket.put("whole", BODY)
    part = bucket.get("whole", byte_range=(begin, end))
    assert part[:3] == (BODY[begin:end], put.etag, len(BODY))


def test_ranges_past_the_end_are_empty(bucket: Bucket) -> None:
    put = bucket.put("whole", BODY)
    empty = bucket.put("empty", b"")
    behind = bucket.get("whole", byte_range=(len(BODY), len(BODY) + 9))
    assert behind[:3] == (b"", put.etag, len(BODY))
    assert bucket.get("empty", byte_range=(0, 10))[:3] == (b"", empty.etag, 0)
    with pytest.raises(KeyAbsent):
        bucket.get("absent", byte_range=(0, 10))
    for wrong in ((5, 5), (6, 5), (-1, 5)):
        with pytest.raises(ValueError, match="range"):
            bucket.get("whole", byte_range=wrong)


def test_not_modified(bucket: Bucket) -> None:
    etag = bucket.put("k", BODY).etag
    assert bucket.get("k", if_none_match=etag) is None
    assert bucket.get("k", if_none_match=etag, byte_range=(0, 9)) is None
    bucket.put("k", b"other")
    changed = bucket.get("k", if_none_match=etag)
    assert changed is not None
    assert changed.body == b"other"


def test_empty_and_large_bodies(bucket: Bucket) -> None:
    large = os.urandom(3 << 20)
    bucket.put("empty", b"")
    bucket.put("large", [large[: 1 << 20], large[1 << 20 :]], idempotent=True)
    for key, body in (("empty", b""), ("large", large)):
        got = bucket.get(key)
        assert got.body == body


ODD = ["~ !'()*$&+,;=:@%2F?#[]", "ü/😀/～\u2028", "a.b", "a-b", "a0", "tab\tbell\x07", " x "]


def test_odd_keys_everywhere(bucket: Bucket) -> None:
    for key in ODD:
        bucket.put(f"odd/{key}", key.encode())
    for key in ODD:
        got = bucket.get(f"odd/{key}")
        assert got.body == key.encode()
        assert bucket.head(f"odd/{key}").size == len(key.encode())
    listed = [entry.key for entry in bucket.list("odd/")]
    assert listed == sorted((f"odd/{key}" for key in ODD), key=str.encode)
    assert bucket.delete_many([*listed, "odd/never there"]) == []
    assert list(bucket.list("odd/")) == []


def folders(bucket: Bucket, prefix: str) -> list[str]:
    return [each for page in bucket.level(prefix) for each in page if isinstance(each, str)]


def test_list_pages(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = sorted([f"l/{n:03}" for n in range(25)] + ["l/d/1", "l/d/2", "l/e/1", "l-x", "m"])
    with ThreadPoolExecutor(8) as pool:
        replies = dict(
            zip(
                keys,
                pool.map(lambda key: bucket.put(key, key.encode(), idempotent=True), keys),
                strict=True,
            )
        )
    attempts = bucket._attempts
    call = attempts.call
    pages = []

    def short_pages(action: str, key: str, operation: str, **parameters: object) -> object:
        if operation == "list_objects_v2":
            pages.append(parameters)
            parameters["MaxKeys"] = 7
        return call(action, key, operation, **parameters)

    monkeypatch.setattr(attempts, "call", short_pages)
    listed = list(bucket.list("l"))
    assert [entry.key for entry in listed] == [key for key in keys if key.startswith("l")]
    assert len(pages) == 5
    for entry in listed:
        assert entry.etag == replies[entry.key].etag
        assert entry.size == len(entry.key)
        assert abs(entry.modified - time.time()) < 60
    assert [entry.key for entry in bucket.list("l/", start_after="l/020")] == [
        "l/021", "l/022", "l/023", "l/024", "l/d/1", "l/d/2", "l/e/1",
    ]  # fmt: skip
    assert folders(bucket, "l/") == ["l/d/", "l/e/"]
    assert folders(bucket, "") == ["l/"]
    assert list(bucket.list("nothing")) == []
    assert folders(bucket, "nothing/") == []


def test_prefixes_are_apart(s3_server: Server) -> None:
    buckets = [Bucket(s3_server.settings(prefix)) for prefix in ("", "one", "one-more", "two/x")]
    for bucket in buckets[1:]:
        bucket.put("key", bucket.settings.prefix.encode())
    for bucket in buckets[1:]:
        assert [entry.key for entry in bucket.list()] == ["key"]
        got = bucket.get("key")
        assert got.body == bucket.settings.prefix.encode()
    assert [entry.key for entry in buckets[0].list()] == ["one-more/key", "one/key", "two/x/key"]
    for bucket in buckets:
        bucket.close()


def test_delete_many_by_the_thousand(moto_server: Server, proxy: FaultProxy) -> None:
    with Bucket(moto_server.settings(endpoint_url=proxy.url)) as bucket:
        bucket.put("k/0001", b"x")
        bucket.put("k/1500", b"x")
        assert bucket.delete_many([f"k/{n:04}" for n in range(1501)]) == []
        assert proxy.count("POST") == 2
        assert list(bucket.list()) == []
        assert bucket.delete_many([]) == []


def test_a_closed_or_pickled_bucket_connects_again(bucket: Bucket) -> None:
    bucket.put("k", b"x")
    bucket.close()
    assert bucket.head("k").size == 1
    with pickle.loads(pickle.dumps(bucket)) as other:
        assert other.head("k").size == 1


# ---- preconditions -------------------------------------------------------------------------------


def test_preconditions(proxied: Bucket) -> None:
    first = proxied.put("k", b"one", if_none_match=True)
    with pytest.raises(PreconditionFailed) as caught:
        proxied.put("k", b"two", if_none_match=True)
    assert (caught.value.key, caught.value.conflict) == ("k", False)
    second = proxied.put("k", b"two", if_match=first.etag)
    with pytest.raises(PreconditionFailed):
        proxied.put("k", b"three", if_match=first.etag)
    with pytest.raises(PreconditionFailed):
        proxied.delete("k", if_match=first.etag)
    proxied.delete("k", if_match=second.etag)
    with pytest.raises(KeyAbsent):
        proxied.put("k", b"three", if_match=second.etag)
    with pytest.raises(ValueError, match="not idempotent"):
        proxied.put("k", b"", if_none_match=True, idempotent=True)


@pytest.mark.own_server("others answer that there is nothing any more")
def test_a_conditional_delete_of_nothing(proxied: Bucket) -> None:
    etag = proxied.put("k", b"one").etag
    proxied.delete("k", if_match=etag)
    with pytest.raises(KeyAbsent):
        proxied.delete("k", if_match=etag)


def test_a_conflict_is_a_failed_precondition(proxied: Bucket, proxy: FaultProxy) -> None:
    proxy.inject("PUT", "/k$", answer(409, "ConditionalRequestConflict"))
    with pytest.raises(PreconditionFailed) as caught:
        proxied.put("k", b"x", if_none_match=True)
    assert caught.value.conflict
    assert proxy.count() == 1


# ---- faults, one of each row ---------------------------------------------------------------------

NOT_APPLIED = {
    "503 SlowDown": answer(503, "SlowDown"),
    "429": answer(429, "TooManyRequests"),
    "400 RequestTimeout": answer(400, "RequestTimeout"),
    "400 BadDigest": answer(400, "BadDigest"),
    "307": answer(307, "TemporaryRedirect"),
}
UNKNOWN = {
    "500": answer(500, "InternalError"),
    "500 applied": answer(500, "InternalError", applied=True),
    "502": answer(502),
    "503": answer(503, "ServiceUnavailable"),
    "504": answer(504, body=b"<html>gateway timeout</html>"),
    "reset before": reset(),
    "reset after": reset(applied=True),
    "stall before": stall(),
    "stall after": stall(applied=True),
}
CUTS = {"cut": cut(), "cut at once": cut(0.0), "cut by reset": cut(rst=True)}


def delete_it(bucket: Bucket) -> None:
    bucket.delete("there")


def without_dates(result: object) -> object:
    return result[:3] if isinstance(result, tuple) and not isinstance(result, list) else result


READ_FAULTS = [*NOT_APPLIED, *sorted({*UNKNOWN} - {"stall after"}), *CUTS]


@pytest.mark.parametrize(
    ("read", "fault"),
    [  # by default a GET with each fault, and of the others one in five
        pytest.param(read, fault, marks=() if read == "GET" or not at % 5 else pytest.mark.long)
        for at, (read, fault) in enumerate(itertools.product(READS, READ_FAULTS))
    ],
)
def test_a_read_survives(read: str, fault: str, proxied: Bucket, proxy: FaultProxy) -> None:
    if read == "HEAD" and fault in CUTS:
        pytest.skip("a HEAD has no body to be cut")
    if read == "HEAD" and fault.startswith("400"):
        pytest.skip("without its code, nothing says that a 400 may pass")
    kind = read.split()[0]
    expected = READS[read](proxied)
    proxy.clear()
    rule = proxy.inject(kind, "", {**NOT_APPLIED, **UNKNOWN, **CUTS}[fault])
    assert without_dates(READS[read](proxied)) == without_dates(expected)
    assert rule.applied == 1
    assert proxy.count() == 2


@pytest.mark.parametrize("fault", [*NOT_APPLIED, *UNKNOWN])
@pytest.mark.parametrize("write", IDEMPOTENT)
@pytest.mark.sampled(4)
def test_an_idempotent_write_survives(
    write: str, fault: str, proxied: Bucket, proxy: FaultProxy
) -> None:
    proxy.inject(write, "", {**NOT_APPLIED, **UNKNOWN}[fault])
    IDEMPOTENT[write](proxied)
    assert proxy.count(write) == 2
    assert [entry.key for entry in proxied.list()] == (["new", "there"] if write == "PUT" else [])


@pytest.mark.parametrize("fault", [*CUTS])
def test_a_cut_answer_to_a_deletion_is_not_success(
    fault: str, proxied: Bucket, proxy: FaultProxy
) -> None:
    proxy.inject("POST", "", CUTS[fault])
    assert proxied.delete_many(["there"]) == []
    assert proxy.count("POST") == 2


@pytest.mark.parametrize("fault", NOT_APPLIED)
@pytest.mark.parametrize("write", ONCE)
def test_a_write_is_repeated_if_it_was_not_applied(
    write: str, fault: str, proxied: Bucket, proxy: FaultProxy
) -> None:
    kind = write.split()[0]
    proxy.inject(kind, "", NOT_APPLIED[fault], times=2)
    ONCE[write](proxied)
    assert proxy.count() == 3


@pytest.mark.parametrize("fault", UNKNOWN)
@pytest.mark.parametrize("write", ONCE)
@pytest.mark.sampled(4)
def test_a_write_is_sent_once_if_it_may_have_been_applied(
    write: str, fault: str, proxied: Bucket, proxy: FaultProxy
) -> None:
    kind = write.split()[0]
    proxy.inject(kind, "", UNKNOWN[fault])
    with pytest.raises(OutcomeUnknown) as caught:
        ONCE[write](proxied)
    assert proxy.count() == 1
    assert caught.value.key == ("there" if kind == "DELETE" else "new")
    assert isinstance(caught.value.__cause__, RemoteError)
    landed = "after" in fault or "applied" in fault
    keys = [entry.key for entry in proxied.list()]
    if kind == "DELETE":
        assert ("there" not in keys) == landed
    else:
        assert ("new" in keys) == landed


def test_a_request_that_was_never_sent_is_repeated(
    moto_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    settings = moto_server.settings(endpoint_url=f"http://127.0.0.1:{port}")
    with Bucket(settings, backoff=Backoff(attempts=3, first_s=0.01)) as bucket:
        for request in (*READS.values(), *IDEMPOTENT.values(), *ONCE.values()):
            with pytest.raises(EndpointUnreachable, match="check endpoint_url") as caught:
                request(bucket)
            assert str(port) in caught.value.endpoint
            assert "\n" not in str(caught.value)


def test_wrong_bytes_pass_as_they_are(proxied: Bucket, proxy: FaultProxy) -> None:
    # Chunks carry their own checks. What the headers say is checked here.
    proxy.inject("GET", "", corrupt())
    got = proxied.get("there")
    assert got.body != BODY
    assert len(got.body) == len(BODY)


@pytest.mark.parametrize(
    ("content_range", "body"),
    [
        ("bytes 0-9/10240", b"0123456789"),
        ("bytes 4-14/10240", b"01234567890"),
        ("bytes 5-13/10240", b"012345678"),
        ("bytes 5-15/10240", b"01234567890"),
        ("bytes 5-14/10240", b"012345678"),
        ("bytes 5-14/12", b"0123456789"),
        ("bytes 5-14/*", b"0123456789"),
        ("nonsense", b"0123456789"),
    ],
)
def test_a_wrong_part_is_fetched_again(
    content_range: str, body: bytes, proxied: Bucket, proxy: FaultProxy
) -> None:
    wrong = answer(206, headers={"Content-Range": content_range, "ETag": '"x"'}, body=body)
    proxy.inject("GET", "", wrong)
    part = proxied.get("there", byte_range=(5, 15))
    assert part.body == BODY[5:15]
    assert proxy.count() == 2


def test_a_server_without_ranges_is_refused_at_once(proxied: Bucket, proxy: FaultProxy) -> None:
    proxy.inject("GET", "", answer(200, headers={"ETag": '"x"'}, body=BODY), times=9)
    with pytest.raises(RemoteError, match="has to honour Range"):
        proxied.get("there", byte_range=(5, 15))
    assert proxy.count() == 1


# ---- how long, and how often ---------------------------------------------------------------------


@pytest.mark.parametrize("request_", [*READS, *IDEMPOTENT])
def test_it_gives_up_with_a_typed_error(request_: str, proxied: Bucket, proxy: FaultProxy) -> None:
    proxy.inject("", "", answer(500, "InternalError", "we\nare sorry"), times=99)
    with pytest.raises(RemoteError) as caught:
        {**READS, **IDEMPOTENT}[request_](proxied)
    assert proxy.count() == ATTEMPTS
    assert (caught.value.status, caught.value.s3_code) == (
        500,
        "" if request_ == "HEAD" else "InternalError",
    )
    assert "\n" not in str(caught.value)
    assert proxied.settings.url in str(caught.value)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), RemoteError)


@pytest.mark.parametrize("fault", [answer(500, "InternalError"), answer(503, "SlowDown"), reset()])
def test_the_sdk_does_not_repeat(
    fault: Fault, moto_server: Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
    monkeypatch.setenv("AWS_RETRY_MODE", "legacy")
    settings = moto_server.settings(endpoint_url=proxy.url)
    proxy.inject("", "", fault, times=99)
    with Bucket(settings, backoff=Backoff(attempts=1)) as bucket:
        for request in (*READS.values(), *IDEMPOTENT.values(), delete_it):
            proxy.clear()
            with pytest.raises((RemoteError, OutcomeUnknown)):
                request(bucket)
            assert proxy.count() == 1


def test_retry_after_is_honoured(proxied: Bucket, proxy: FaultProxy) -> None:
    proxy.inject("GET", "", answer(503, "SlowDown", headers={"Retry-After": "1"}))
    began = time.monotonic()
    proxied.get("there")
    assert time.monotonic() - began >= 1
    assert proxy.count() == 2


def test_it_does_not_wait_longer_than_it_may(moto_server: Server, proxy: FaultProxy) -> None:
    settings = moto_server.settings(endpoint_url=proxy.url)
    proxy.inject("GET", "", answer(503, "SlowDown", headers={"Retry-After": "30"}), times=9)
    with Bucket(settings, backoff=Backoff(total_s=5)) as bucket:
        began = time.monotonic()
        with pytest.raises(RemoteError, match="throttled"):
            bucket.get("k")
        assert time.monotonic() - began < 5
    assert proxy.count() == 1


class FailsOnce:
    """A connection to a server that answers no first request."""

    endpoint, region = "http://fails.once", "us-east-1"

    def __init__(self) -> None:
        self.asked = 0

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        self.asked += 1
        if self.asked == 1:
            raise Broken("it was cut")
        return {"ETag": '"e"', "ResponseMetadata": {"HTTPHeaders": {}}}


def test_an_attempt_that_failed_does_not_keep_what_was_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The part of a pack, which is megabytes. (Its error led to itself, and so it stayed until the
    collector of cycles came by.)"""
    bucket, connection = Bucket(S3Settings("b", max_concurrency=1), backoff=QUICK), FailsOnce()
    monkeypatch.setattr(bucket._attempts, "_connected", lambda: connection)
    body = bytes(bytearray(100_000))
    before = sys.getrefcount(body)
    gc.disable()
    try:
        bucket.put("k", body, idempotent=True)
        bucket._attempts._threads.submit(
            int
        ).result()  # the one thread has let go of what was before
        assert sys.getrefcount(body) == before
    finally:
        gc.enable()
    assert connection.asked == 2


# ---- settings that show in requests --------------------------------------------------------------


@pytest.mark.own_server("it takes any key for encryption, and any storage class")
def test_encryption_and_storage_class_are_sent(moto_server: Server, proxy: FaultProxy) -> None:
    settings = moto_server.settings(
        endpoint_url=proxy.url, sse="aws:kms", sse_kms_key_id="key-1", storage_class="STANDARD_IA"
    )
    with Bucket(settings) as bucket:
        bucket.put("k", b"x")
    [exchange] = proxy.matching("PUT")
    assert exchange.headers["x-amz-server-side-encryption"] == "aws:kms"
    assert exchange.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"
    assert exchange.headers["x-amz-storage-class"] == "STANDARD_IA"
    assert not [name for name in exchange.headers if "checksum" in name]


def test_virtual_addressing(moto_server: Server) -> None:
    settings = moto_server.settings(
        endpoint_url="http://s3.localhost:1", addressing_style="virtual", region="eu-west-3"
    )
    with Bucket(settings) as bucket:
        connection = bucket._attempts._connected()
        assert connection._base == f"http://{moto_server.bucket}.s3.localhost:1/store/"[:-6]
        assert connection.region == "eu-west-3"


def test_an_endpoint_of_the_profile_is_treated_as_one(
    moto_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text(f"[profile mine]\nendpoint_url = {moto_server.endpoint_url}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    with Bucket(moto_server.settings(endpoint_url=None)) as bucket:
        bucket.put("k", b"x")
        assert bucket.head("k").size == 1
        connection = bucket._attempts._connected()
        assert connection.endpoint == moto_server.endpoint_url
        assert connection._client.meta.config.request_checksum_calculation == "when_required"


def test_botocore_is_not_imported_before_it_is_needed_and_boto3_never() -> None:
    import subprocess

    script = (
        "import sys, castore.s3.client.put_once, castore.s3.client.probe;"
        "from castore.s3.client import bucket, settings;"
        "bucket.Bucket(settings.parse_settings('s3://bkt'));"
        "print([name for name in sys.modules if name.split('.')[0] in ('boto3', 'botocore')]);"
        "import castore.s3.client.connection, castore.s3.client.identity, conducto.secrets.ssm;"
        "print('botocore' in sys.modules, 'boto3' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.stdout == "[]\nTrue False\n", finished.stderr


# ---- threads and processes -----------------------------------------------------------------------


def test_concurrency_is_bounded(moto_server: Server, proxy: FaultProxy) -> None:
    proxy.rtt_s = 0.03
    settings = moto_server.settings(endpoint_url=proxy.url, max_concurrency=4)
    with Bucket(settings) as bucket:
        bucket.put("k", BODY)
        proxy.clear()
        with ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(lambda n: bucket.get("k", byte_range=(n, n + 9)), range(48)))
    assert [reply and reply.body for reply in replies] == [BODY[n : n + 9] for n in range(48)]
    times = sorted(
        [(exchange.began, 1) for exchange in proxy.exchanges]
        + [(exchange.ended, -1) for exchange in proxy.exchanges]
    )
    in_flight = most = 0
    for _, step in times:
        in_flight += step
        most = max(most, in_flight)
    assert 2 <= most <= 4


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_makes_connections_of_its_own(s3_server: Server) -> None:
    with (
        FaultProxy(s3_server.endpoint_url) as proxy,
        Bucket(s3_server.settings(endpoint_url=proxy.url), backoff=QUICK) as bucket,
        ThreadPoolExecutor(4) as pool,
    ):
        for whose in ("parent", "child"):
            for n in range(4):
                bucket.put(f"{whose}/{n}", f"{whose} {n}".encode() * 1000)

        def read_all(whose: str) -> bool:
            return all(
                bucket.get(f"{whose}/{n % 4}").body == f"{whose} {n % 4}".encode() * 1000
                for n in range(16)
            )

        assert all(pool.map(read_all, ["parent"] * 4))  # so that there are idle connections
        busy = [pool.submit(read_all, "parent") for _ in range(2)]
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if read_all("child") else 1)
            finally:
                os._exit(2)
        assert read_all("parent")
        assert all(future.result() for future in busy)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert read_all("parent")
        ports = [
            {exchange.client for exchange in proxy.matching("GET", f"/{whose}/")}
            for whose in ("parent", "child")
        ]
        assert ports[0].isdisjoint(ports[1])


# ---- the servers themselves ----------------------------------------------------------------------


def test_rclone_refuses_stale_signatures(
    rclone_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule that ends a late request: it lands while its signature is good, or never."""
    import datetime

    import botocore.auth

    now = botocore.auth.get_current_datetime
    with Bucket(rclone_server.settings(), backoff=QUICK) as bucket:
        bucket.put("k", b"in time")
        for minutes in (-16, 16):
            shift = datetime.timedelta(minutes=minutes)
            monkeypatch.setattr(
                botocore.auth, "get_current_datetime", lambda *a, s=shift, **k: now(*a, **k) + s
            )
            with pytest.raises(RemoteError, match="clock"):
                bucket.put("k", b"late")
            with pytest.raises(RemoteError, match="clock"):
                bucket.get("k")
        monkeypatch.undo()


def test_a_request_that_a_balancer_sends_twice(proxied: Bucket, proxy: FaultProxy) -> None:
    proxy.inject("PUT", "/k$", twice())
    with pytest.raises(PreconditionFailed):
        proxied.put("k", b"mine all the same", if_none_match=True)
    got = proxied.get("k")
    assert got.body == b"mine all the same"


# ---------------------------------------------------------------- checksums of what is put


@pytest.mark.parametrize("size", [0, 1000, 5_000_000])
@pytest.mark.parametrize("kind", ["auto", "md5", "crc32", "none"])
def test_a_checksum_with_each_put(
    kind: str, size: int, moto_server: Server, proxy: FaultProxy
) -> None:
    """A bucket that retains objects by default refuses those that come without."""
    header = {"auto": "content-md5", "md5": "content-md5", "crc32": "x-amz-checksum-crc32"}.get(
        kind
    )
    data = os.urandom(size)

    def retaining(exchange: Exchange, connection: Connection) -> None:
        found = {"content-md5", "x-amz-checksum-crc32"} & exchange.headers.keys()
        assert "x-amz-trailer" not in exchange.headers
        if not found:
            answer(400, "InvalidRequest", "Content-MD5 OR x-amz-checksum- is required")(
                exchange, connection
            )
            return
        [name] = found
        seen.append((name, exchange.headers[name]))
        connection.relay(exchange)

    seen: list[tuple[str, str]] = []
    proxy.inject("PUT", "", retaining, times=9)
    settings = moto_server.settings(endpoint_url=proxy.url, upload_checksum=kind)
    with Bucket(settings, backoff=QUICK) as bucket:
        parts = [data[: size // 3], memoryview(data)[size // 3 :]]
        if header is None:
            with pytest.raises(RemoteError, match="is required"):
                bucket.put("key", parts)
            return
        bucket.put("key", parts)
        assert bucket.get("key").body == data
    raw = (
        hashlib.md5(data).digest()
        if header == "content-md5"
        else zlib.crc32(data).to_bytes(4, "big")
    )
    assert seen == [(header, base64.b64encode(raw).decode())]


def test_a_body_that_changed_on_its_way_is_sent_again(rclone_server: Server) -> None:
    """The server checks it; moto does not."""

    def corrupted(exchange: Exchange, connection: Connection) -> None:
        sent = b"".join(connection.request_blocks(exchange))
        response = connection.upstream.forward(exchange, sent[:-1] + bytes([sent[-1] ^ 1]))
        exchange.status = response.status
        connection.send(response.head + response.body)

    with FaultProxy(rclone_server.endpoint_url) as link:
        link.inject("PUT", "", corrupted)
        settings = rclone_server.settings(endpoint_url=link.url)
        with Bucket(settings, backoff=QUICK) as bucket:
            bucket.put("key", b"0123456789", idempotent=True)
            assert link.count("PUT") == 2
            assert bucket.get("key").body == b"0123456789"


@pytest.mark.parametrize("slept", [500.0, 700.0])
def test_a_write_that_is_signed_long_after_it_was_asked_for_is_not_sent(
    proxied: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, slept: float
) -> None:
    """What it was decided by, as pins, may be gone by then: it is not repeated, either."""
    clock = itertools.count(0.0, slept)
    monkeypatch.setattr(deadline, "boot_clock", lambda: next(clock))
    made: list[bytes] = []

    def make_body(nonce: bytes) -> bytes:
        made.append(nonce)
        return nonce

    writes: list[Callable[[], object]] = [
        lambda: put_once(proxied, "put", make_body),
        lambda: proxied.delete("there"),
        lambda: proxied.delete_many(["put"]),
    ]
    for write in writes:
        with suppress(RemoteError) if slept < 600 else pytest.raises(RemoteError, match="too late"):
            write()
    assert len(made) == 1
    assert len(proxy.exchanges) == (len(writes) if slept < 600 else 0)


@pytest.mark.parametrize("asleep_s", [0.0, 86_400.0])
def test_a_write_is_not_repeated_after_the_machine_has_slept(
    proxied: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, asleep_s: float
) -> None:
    """Before the second attempt, and time.monotonic does not tell. What is read, or may be put any
    number of times, is asked for again."""
    proxied.put("there", b"1", idempotent=True)
    slept = 0.0

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += asleep_s

    monkeypatch.setattr("castore.s3.client.retries.time.sleep", sleep)
    for module in (retries, deleting):
        monkeypatch.setattr(module, "boot_clock", lambda: boot_clock() + slept)
    there = etag_at(proxied, "there") or ""
    any_time: list[tuple[str, Callable[[], object]]] = [
        ("PUT", lambda: proxied.put("there", b"1", idempotent=True)),
        ("GET", lambda: proxied.get("there")),
    ]
    decided: list[tuple[str, Callable[[], object]]] = [
        ("PUT", lambda: proxied.put("put", b"1")),
        ("DELETE", lambda: proxied.delete("put")),
        ("DELETE", lambda: delete_version(proxied, "there", there)),
    ]
    for verbs, repeated in [(any_time, True), (decided, not asleep_s)]:
        for method, verb in verbs:
            proxy.inject(method, "", answer(503, "SlowDown"))
            with nullcontext() if repeated else pytest.raises(RemoteError, match="SlowDown"):
                verb()


def test_what_waited_long_for_its_turn_is_sent_if_nothing_decided_it(
    proxied: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As packs on a slow link, and what is read."""
    clock = itertools.count(0.0, 7000.0)
    monkeypatch.setattr(deadline, "boot_clock", lambda: next(clock))
    proxied.put("pack", b"1", idempotent=True)
    assert (proxied.get("pack").body, proxied.head("pack").size) == (b"1", 1)
    assert len(proxy.exchanges) == 3
