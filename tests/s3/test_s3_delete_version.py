"""delete_version: what is told is so, whatever becomes of replies and of what is there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gc_stores import World
from memory_s3 import Actor, Losing, Step
from servers import QUICK

from castore.errors import AccessDenied, CastoreError, CommitUnknown, RemoteError
from castore.s3.client.bucket import Bucket, OutcomeUnknown
from castore.s3.client.delete_version import delete_version, delete_versions, etag_at

KEY = "names/k"
LOST = (500, "InternalError")  # which does not tell whether it was done
CONFLICT = (409, "ConditionalRequestConflict")
DENIED = (403, "AccessDenied")
UNKNOWN = (501, "NotImplemented")

Answer = tuple[int, str]


class Script:
    """What the server says to one kind of request, one after the other and then no more, and what
    is there once it said it: None for nothing, "" for what was there."""

    def __init__(self, world: World, bucket: Bucket) -> None:
        self._server = world.server
        self._at = bucket.settings.key(KEY)
        self._said: dict[str, list[tuple[Answer, str | None]]] = {}
        self.asked: list[str] = []
        world.server.refuse = self._refuse

    def say(self, kind: str, *answers: Answer, then: str | None = "") -> None:
        self._said.setdefault(kind, []).extend((answer, then) for answer in answers)

    def _refuse(self, step: Step) -> Answer | None:
        self.asked.append(step.kind)
        left = self._said.get(step.kind)
        if not left:
            return None
        answer, then = left.pop(0)
        if then is None:
            self._server.objects.pop(self._at)
        elif then:
            there = self._server.objects[self._at]
            self._server.objects[self._at] = there._replace(body=b"newer", etag=then)
        return answer


@pytest.fixture
def actor() -> Actor:
    return Actor("one")


@pytest.fixture
def bucket(world: World, actor: Actor) -> Iterator[Bucket]:
    with world.server.opening(actor), Bucket(world.settings(), backoff=QUICK) as bucket:
        yield bucket


@pytest.fixture
def etag(bucket: Bucket) -> str:
    return bucket.put(KEY, b"old", idempotent=True).etag


@pytest.fixture
def script(world: World, bucket: Bucket, etag: str) -> Script:
    return Script(world, bucket)


@pytest.mark.parametrize("answer", [LOST, CONFLICT])
def test_that_it_is_gone_is_success(
    bucket: Bucket, etag: str, script: Script, answer: Answer
) -> None:
    script.say("DELETE", answer, then=None)
    assert delete_version(bucket, KEY, etag)
    assert script.asked == ["DELETE", "HEAD"]


def test_another_deleted_it(bucket: Bucket, etag: str, script: Script) -> None:
    bucket.delete(KEY)
    script.asked.clear()
    assert delete_version(bucket, KEY, etag)
    assert script.asked == ["DELETE"]


@pytest.mark.parametrize("answer", [LOST, CONFLICT, UNKNOWN, (412, "PreconditionFailed")])
def test_what_was_put_meanwhile_stays(
    bucket: Bucket, etag: str, script: Script, answer: Answer
) -> None:
    script.say("DELETE", answer, then='"newer"')
    assert not delete_version(bucket, KEY, etag)
    assert bucket.get(KEY).body == b"newer"


@pytest.mark.parametrize("answer", [LOST, CONFLICT])
def test_it_is_tried_again_while_that_version_is_there(
    bucket: Bucket, etag: str, script: Script, answer: Answer
) -> None:
    script.say("DELETE", answer, answer)
    assert delete_version(bucket, KEY, etag)
    assert etag_at(bucket, KEY) is None
    assert script.asked.count("DELETE") == 3


def test_a_conflict_that_stays_is_an_error(bucket: Bucket, etag: str, script: Script) -> None:
    script.say("DELETE", *[CONFLICT] * 99)
    with pytest.raises(RemoteError, match="kept changing"):
        delete_version(bucket, KEY, etag)
    assert script.asked.count("DELETE") == QUICK.attempts


@pytest.mark.parametrize("answer", [DENIED, (418, "Teapot")])
def test_what_is_refused_is_not_asked_again(
    bucket: Bucket, etag: str, script: Script, answer: Answer
) -> None:
    """Nor without the condition, under which alone it was to be done."""
    script.say("DELETE", answer)
    with pytest.raises(CastoreError, match="s3:DeleteObject"):
        delete_version(bucket, KEY, etag)
    assert script.asked == ["DELETE"]


def test_a_server_without_the_condition_that_refuses_it_anyway(
    bucket: Bucket, etag: str, script: Script
) -> None:
    script.say("DELETE", UNKNOWN, UNKNOWN)
    with pytest.raises(RemoteError, match="NotImplemented"):
        delete_version(bucket, KEY, etag)
    assert script.asked == ["DELETE", "HEAD", "DELETE"]


class TestAnAttemptMayLandYet:
    """Then it is not said that the name is there, whatever goes wrong after it."""

    def test_none_has_a_reply(self, world: World, etag: str) -> None:
        lossy = Losing("lossy", "DELETE", KEY, all=True)
        with world.server.opening(lossy), Bucket(world.settings(), backoff=QUICK) as bucket:
            with pytest.raises(OutcomeUnknown) as caught:
                delete_version(bucket, KEY, etag)
            assert "lost" in str(caught.value.__cause__)
            assert lossy.lost == QUICK.attempts
            world.server.land()
            assert etag_at(bucket, KEY) is None

    @pytest.mark.parametrize("then", [None, ""], ids=["gone", "there"])
    def test_it_can_not_be_looked_for(
        self, bucket: Bucket, etag: str, script: Script, then: str | None
    ) -> None:
        script.say("DELETE", LOST, then=then)
        script.say("HEAD", DENIED)
        with pytest.raises(OutcomeUnknown) as caught:
            delete_version(bucket, KEY, etag)
        assert isinstance(caught.value.__cause__, AccessDenied)

    @pytest.mark.parametrize("later", [[DENIED], [CONFLICT] * 99, [(400, "Bad"), (400, "Bad")]])
    def test_the_next_is_refused(
        self, bucket: Bucket, etag: str, script: Script, later: list[Answer]
    ) -> None:
        script.say("DELETE", LOST, *later)
        with pytest.raises(OutcomeUnknown) as caught:
            delete_version(bucket, KEY, etag)
        assert isinstance(caught.value.__cause__, CastoreError)

    def test_who_deletes_a_name_is_told_so(self, world: World, actor: Actor) -> None:
        """As who puts one is."""
        store = world.open("one", actor)
        store.puts("k", b"1")
        actor.lose_at = len(actor.steps) + 1  # behind the look at what is there
        world.server.refuse = lambda step: (
            DENIED if step.kind == "HEAD" and actor.steps[-2].kind == "DELETE" else None
        )
        with pytest.raises(CommitUnknown, match="whether 'k' was deleted is not known"):
            store.delete("k")
        world.server.land()
        assert list(store.names()) == []
        assert store.check(read_data=True).problems == []


class TestManyInOneRequest:
    @pytest.mark.parametrize("answer", [LOST, UNKNOWN, (400, "Bad"), (405, "MethodNotAllowed")])
    def test_they_are_to_be_looked_at_one_by_one(
        self, bucket: Bucket, etag: str, script: Script, answer: Answer
    ) -> None:
        script.say("POST", answer)
        assert delete_versions(bucket, [(KEY, etag)]) == set()
        assert script.asked == ["POST"]
        assert delete_versions(bucket, [(KEY, etag)]) == {KEY}

    def test_another_refusal_is_the_callers(
        self, bucket: Bucket, etag: str, script: Script
    ) -> None:
        script.say("POST", (418, "Teapot"))
        with pytest.raises(RemoteError, match="Teapot"):
            delete_versions(bucket, [(KEY, etag)])
