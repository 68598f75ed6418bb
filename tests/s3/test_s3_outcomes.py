"""put_once: one write is there at the end, and it is known which, whatever became of replies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import pytest
from fault_proxy import Fault, FaultProxy, answer, late, reset, stall, twice
from servers import QUICK, Server

from castore.errors import AccessDenied, RemoteError
from castore.s3.client.bucket import Bucket, KeyAbsent, OutcomeUnknown, PreconditionFailed
from castore.s3.client.put_once import Landed, put_once
from castore.s3.client.retries import Backoff

KEY = "names/k"


@pytest.fixture
def proxied(
    moto_server: Server, proxy: FaultProxy, request: pytest.FixtureRequest
) -> Iterator[Bucket]:
    timeout_s = 0.6 if "stall" in request.node.name else 30.0
    settings = moto_server.settings(endpoint_url=proxy.url, read_timeout_s=timeout_s)
    with Bucket(settings, backoff=QUICK) as bucket:
        bucket.put("other", b"")  # connected, and the bucket seen
        proxy.clear()
        yield bucket


class Writer:
    """Makes bodies of its own, and remembers them."""

    def __init__(self, text: bytes = b"mine") -> None:
        self.text = text
        self.bodies: list[bytes] = []

    def __call__(self, nonce: bytes) -> bytes:
        assert len(nonce) == 16
        self.bodies.append(nonce + self.text)
        return self.bodies[-1]


def there(bucket: Bucket) -> bytes | None:
    try:
        return bucket.get(KEY).body
    except KeyAbsent:
        return None


def check(bucket: Bucket, landed: Landed, writer: Writer, *, attempt: int) -> None:
    """The attempt (from 0) is there, and it is what was returned."""
    assert there(bucket) == writer.bodies[attempt]
    head = bucket.head(KEY)
    assert (landed.body, landed.etag, landed.size) == (b"", head.etag, head.size)
    assert len(set(writer.bodies)) == len(writer.bodies)


@pytest.mark.parametrize("precondition", ["none", "absent", "etag"])
class TestEachPrecondition:
    @pytest.fixture
    def options(self, precondition: str, proxied: Bucket, proxy: FaultProxy) -> dict[str, object]:
        if precondition == "none":
            return {}
        if precondition == "absent":
            return {"if_none_match": True}
        etag = proxied.put(KEY, b"before").etag
        proxy.clear()
        return {"if_match": etag}

    def test_one_request(
        self, options: dict[str, object], proxied: Bucket, proxy: FaultProxy
    ) -> None:
        writer = Writer()
        landed = put_once(proxied, KEY, writer, **options)  # type: ignore[arg-type]
        assert not landed.any_unknown
        assert proxy.count() == 1
        check(proxied, landed, writer, attempt=0)

    @pytest.mark.parametrize(
        "fault",
        [
            reset(applied=True),
            stall(applied=True),
            answer(500, "InternalError", applied=True),
            answer(503, applied=True),
        ],
        ids=["reset", "stall", "500", "503"],
    )
    def test_a_lost_reply_is_found(
        self, fault: Fault, options: dict[str, object], proxied: Bucket, proxy: FaultProxy
    ) -> None:
        proxy.inject("PUT", KEY, fault)
        writer = Writer()
        landed = put_once(proxied, KEY, writer, **options)  # type: ignore[arg-type]
        assert landed.any_unknown
        assert [exchange.kind for exchange in proxy.exchanges] == ["PUT", "GET"]
        check(proxied, landed, writer, attempt=0)

    @pytest.mark.parametrize(
        "fault",
        [reset(), stall(), answer(500, "InternalError"), answer(502)],
        ids=["reset", "stall", "500", "502"],
    )
    @pytest.mark.sampled(7)
    def test_a_lost_request_is_sent_anew(
        self, fault: Fault, options: dict[str, object], proxied: Bucket, proxy: FaultProxy
    ) -> None:
        proxy.inject("PUT", KEY, fault, times=2)
        writer = Writer()
        landed = put_once(proxied, KEY, writer, **options)  # type: ignore[arg-type]
        assert landed.any_unknown
        kinds = [kind for kind, _ in groupby(e.kind for e in proxy.exchanges)]  # a read may repeat
        assert kinds == ["PUT", "GET", "PUT", "GET", "PUT"]
        check(proxied, landed, writer, attempt=2)

    def test_what_was_not_applied_is_not_looked_for(
        self, options: dict[str, object], proxied: Bucket, proxy: FaultProxy
    ) -> None:
        proxy.inject("PUT", KEY, answer(503, "SlowDown"), times=2)
        writer = Writer()
        landed = put_once(proxied, KEY, writer, **options)  # type: ignore[arg-type]
        assert not landed.any_unknown
        assert [exchange.kind for exchange in proxy.exchanges] == ["PUT"] * 3
        check(proxied, landed, writer, attempt=2)

    def test_a_conflict_passes(
        self, options: dict[str, object], proxied: Bucket, proxy: FaultProxy
    ) -> None:
        proxy.inject("PUT", KEY, answer(409, "ConditionalRequestConflict"))
        writer = Writer()
        landed = put_once(proxied, KEY, writer, **options)  # type: ignore[arg-type]
        assert not landed.any_unknown
        assert proxy.count("PUT") == 2
        check(proxied, landed, writer, attempt=1)

    def test_it_gives_up(
        self, options: dict[str, object], proxied: Bucket, proxy: FaultProxy
    ) -> None:
        proxy.inject("PUT", KEY, answer(500, "InternalError"), times=99)
        before = there(proxied)
        writer = Writer()
        with pytest.raises(OutcomeUnknown) as caught:
            put_once(proxied, KEY, writer, **options)  # type: ignore[arg-type]
        assert isinstance(caught.value.__cause__, RemoteError)
        assert len(writer.bodies) == proxy.count("PUT") == QUICK.attempts
        assert there(proxied) == before

    def test_throttled_to_the_end_is_not_unknown(
        self, options: dict[str, object], proxied: Bucket, proxy: FaultProxy
    ) -> None:
        proxy.inject("PUT", KEY, answer(503, "SlowDown"), times=99)
        with pytest.raises(RemoteError, match="throttled"):
            put_once(proxied, KEY, Writer(), **options)  # type: ignore[arg-type]

    def test_denied_at_once_and_later(
        self, options: dict[str, object], proxied: Bucket, proxy: FaultProxy
    ) -> None:
        proxy.inject("PUT", KEY, answer(403, "AccessDenied"), times=99)
        with pytest.raises(AccessDenied):
            put_once(proxied, KEY, Writer(), **options)  # type: ignore[arg-type]
        proxy.rules.clear()
        proxy.inject("PUT", KEY, reset())
        proxy.inject("PUT", KEY, answer(403, "AccessDenied"), times=99)
        with pytest.raises(OutcomeUnknown) as caught:
            put_once(proxied, KEY, Writer(), **options)  # type: ignore[arg-type]
        assert isinstance(caught.value.__cause__, AccessDenied)

    def test_it_can_not_look(
        self, options: dict[str, object], proxied: Bucket, proxy: FaultProxy
    ) -> None:
        proxy.inject("PUT", KEY, reset())
        proxy.inject("GET", KEY, answer(403, "AccessDenied"), times=99)
        with pytest.raises(OutcomeUnknown) as caught:
            put_once(proxied, KEY, Writer(), **options)  # type: ignore[arg-type]
        assert isinstance(caught.value.__cause__, AccessDenied)

    def test_the_caller_can_stop_it_between_attempts(
        self, options: dict[str, object], proxied: Bucket, proxy: FaultProxy
    ) -> None:
        writer = Writer()

        def make_body(nonce: bytes) -> bytes:
            if writer.bodies:
                raise TimeoutError("the pins are too old")
            return writer(nonce)

        proxy.inject("PUT", KEY, answer(503, "SlowDown"))
        with pytest.raises(TimeoutError):
            put_once(proxied, KEY, make_body, **options)  # type: ignore[arg-type]
        assert proxy.count() == 1
        writer.bodies.clear()
        proxy.inject("PUT", KEY, reset())
        with pytest.raises(OutcomeUnknown) as caught:
            put_once(proxied, KEY, make_body, **options)  # type: ignore[arg-type]
        assert isinstance(caught.value.__cause__, TimeoutError)

    def test_an_attempt_that_lands_before_the_next(
        self, options: dict[str, object], proxied: Bucket, proxy: FaultProxy, precondition: str
    ) -> None:
        proxy.inject("PUT", KEY, late())
        slow = Backoff(first_s=0.0, throttled_first_s=0.0)
        with Bucket(proxied.settings, backoff=slow) as bucket:
            writer = Writer()

            def make_body(nonce: bytes) -> bytes:
                if writer.bodies:  # the second waits until the first has landed
                    proxy.land()
                return writer(nonce)

            landed = put_once(bucket, KEY, make_body, **options)  # type: ignore[arg-type]
        assert landed.any_unknown
        check(proxied, landed, writer, attempt=1 if precondition == "none" else 0)

    def test_an_attempt_that_lands_after_the_next(
        self, options: dict[str, object], proxied: Bucket, proxy: FaultProxy, precondition: str
    ) -> None:
        proxy.inject("PUT", KEY, late())
        writer = Writer()
        landed = put_once(proxied, KEY, writer, **options)  # type: ignore[arg-type]
        assert landed.any_unknown, "so the session keeps its pins"
        check(proxied, landed, writer, attempt=1)
        proxy.land()
        # Without a precondition the late one is there now: the same content, under another nonce.
        assert there(proxied) == writer.bodies[0 if precondition == "none" else 1]


def test_someone_else_is_there(proxied: Bucket, proxy: FaultProxy) -> None:
    stale = proxied.put(KEY, b"an older one").etag
    proxied.put(KEY, b"someone else's")
    for options in ({"if_none_match": True}, {"if_match": stale}):
        with pytest.raises(PreconditionFailed) as caught:
            put_once(proxied, KEY, Writer(), **options)
        assert (caught.value.key, caught.value.any_unknown) == (KEY, False)
    assert there(proxied) == b"someone else's"
    proxied.delete(KEY)
    with pytest.raises(PreconditionFailed):
        put_once(proxied, KEY, Writer(), if_match=stale)


def test_someone_else_came_in_between(proxied: Bucket, proxy: FaultProxy) -> None:
    def overtake(exchange: object, connection: object) -> None:
        with Bucket(proxied.settings) as other:
            other.put(KEY, b"someone else's")
        reset()(exchange, connection)  # type: ignore[arg-type]

    for options in ({"if_none_match": True}, {"if_match": "etag"}):
        proxied.delete(KEY)
        if "if_match" in options:
            options = {"if_match": proxied.put(KEY, b"before").etag}
        proxy.inject("PUT", KEY, overtake)
        with pytest.raises(PreconditionFailed) as caught:
            put_once(proxied, KEY, Writer(), **options)
        assert caught.value.any_unknown, "ours may have been there before"
        proxy.rules.clear()
    assert there(proxied) == b"someone else's"


def test_its_own_landed_write_answers_412(proxied: Bucket, proxy: FaultProxy) -> None:
    proxy.inject("PUT", KEY, twice(), times=2)
    writer = Writer()
    landed = put_once(proxied, KEY, writer, if_none_match=True)
    check(proxied, landed, writer, attempt=0)
    second = Writer(b"second")
    landed = put_once(proxied, KEY, second, if_match=landed.etag)
    assert landed.any_unknown
    check(proxied, landed, second, attempt=0)
    assert proxy.count("PUT") == 2


def test_one_of_many_creates(proxied: Bucket) -> None:
    writers = [Writer(b"%d" % n) for n in range(8)]
    started = threading.Barrier(8)

    def create(writer: Writer) -> Landed | None:
        started.wait(10)
        try:
            return put_once(proxied, KEY, writer, if_none_match=True)
        except PreconditionFailed:
            return None

    with ThreadPoolExecutor(8) as pool:
        landed = list(pool.map(create, writers))
    [winner] = [n for n, one in enumerate(landed) if one is not None]
    assert there(proxied) in writers[winner].bodies


@pytest.mark.parametrize("lossy", [False, True])
def test_compare_and_swap_loses_no_increment(
    lossy: bool, proxied: Bucket, proxy: FaultProxy
) -> None:
    first = put_once(proxied, KEY, lambda nonce: nonce + b"0", if_none_match=True)
    assert first.size == 17
    if lossy:
        for nth in range(3, 40, 4):
            proxy.inject("PUT", KEY, reset(applied=nth % 8 == 3), nth=nth)

    def increment(_: int) -> int:
        refused = 0
        while True:
            now = proxied.get(KEY)
            count = int(now.body[16:]) + 1
            try:
                body = str(count).encode()
                put_once(proxied, KEY, lambda nonce, b=body: nonce + b, if_match=now.etag)  # type: ignore[misc]
                return refused
            except PreconditionFailed as failed:
                # Counted as lost even if it may have been there: what came after began from it.
                if failed.any_unknown:
                    raise
                refused += 1

    with ThreadPoolExecutor(4) as pool:
        outcomes = [pool.submit(increment, n) for n in range(12)]
        unknown = sum(isinstance(one.exception(), PreconditionFailed) for one in outcomes)
    body = there(proxied)
    assert body is not None
    assert 12 - unknown <= int(body[16:]) <= 12
    if not lossy:
        assert int(body[16:]) == 12
