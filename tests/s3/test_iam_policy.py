"""The policy of conducto.policy, held by a server that enforces it: all that conducto does is
allowed to the user, and nothing to another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from iam_server import server
from places import ROOT

import castore
import conducto as co
from castore.errors import AccessDenied
from castore.s3.client.bucket import Bucket
from castore.s3.client.settings import parse_settings
from conducto import context
from conducto.errors import InvalidContext
from conducto.policy import EACH_USER, main, user_policy

pytest_plugins = ["servers"]

BUCKETS = ("users-data", "users-data-versioned")


@dataclass(frozen=True)
class User:
    id: str
    access_key: str
    secret_key: str


@dataclass(frozen=True)
class Cloud:
    endpoint_url: str
    users: dict[str, User]


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """Users of IAM who have the policy, by group (ann, bob), by themselves (eve), and not at all
    (nobody); on a server that enforces it from now on."""
    with server(_set_up) as (endpoint_url, users):
        yield Cloud(endpoint_url, users)


def _set_up(endpoint_url: str) -> dict[str, User]:
    session = boto3.Session("setup", "setup", region_name="us-east-1")
    iam = session.client("iam", endpoint_url=endpoint_url)
    s3 = session.client("s3", endpoint_url=endpoint_url)
    iam.create_group(GroupName="users")
    for bucket in BUCKETS:
        s3.create_bucket(Bucket=bucket)
        iam.put_group_policy(
            GroupName="users", PolicyName=bucket, PolicyDocument=json.dumps(user_policy(bucket))
        )
    s3.put_bucket_versioning(Bucket=BUCKETS[1], VersioningConfiguration={"Status": "Enabled"})
    users = {}
    for name in ("ann", "bob", "eve", "nobody"):
        user_id = iam.create_user(UserName=name)["User"]["UserId"]
        key = iam.create_access_key(UserName=name)["AccessKey"]
        users[name] = User(user_id, key["AccessKeyId"], key["SecretAccessKey"])
        if name in ("ann", "bob"):
            iam.add_user_to_group(GroupName="users", UserName=name)
    iam.put_user_policy(
        UserName="eve",
        PolicyName="hers",
        PolicyDocument=json.dumps(user_policy(BUCKETS[0], "team-e")),
    )
    return users


Become = Callable[..., User]


@pytest.fixture
def become(
    aws_environment: None, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Become]:
    """`become("ann")`: this process is hers from now on; with `identity`, in another's folder."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", cloud.endpoint_url)
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CONDUCTO_EXECUTION_ENV", "worker_cloud")
    monkeypatch.setenv("CONDUCTO_PIPELINE_ID", "p1")
    monkeypatch.setenv("CONDUCTO_S3_BUCKET", BUCKETS[0])

    def become(name: str, identity: str | None = None) -> User:
        context.close_stores()
        user = cloud.users[name]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", user.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", user.secret_key)
        monkeypatch.delenv("CONDUCTO_IDENTITY_ID", raising=False)
        if identity is not None:
            monkeypatch.setenv("CONDUCTO_IDENTITY_ID", identity)
        return user

    yield become
    context.close_stores()


def use_everything(tmp_path: Path) -> None:
    """Every operation of conducto.data, in both scopes."""
    (tmp_path / "folder").mkdir(exist_ok=True)
    (tmp_path / "folder" / "file").write_bytes(bytes(range(256)) * 2000)
    for scope in (co.data.user, co.data.pipeline):
        assert scope.exists("gone") is False
        with pytest.raises(FileNotFoundError):
            scope.gets("gone")
        with pytest.raises(FileNotFoundError):
            scope.size("gone")
        with pytest.raises(FileNotFoundError):
            scope.delete("gone")
        scope.puts("a/small", b"0123456789")
        scope.puts("a/small", b"overwritten")
        scope.put("a/large", tmp_path / "folder" / "file")
        scope.get("a/large", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == bytes(range(256)) * 2000
        assert scope.gets("a/large", byte_range=[300_000, 300_003]) == bytes((224, 225, 226))
        assert scope.list("a/") == ["a/large", "a/small"]
        assert scope.exists("a")
        assert scope.size("a/small") == 11
        scope.delete("a/small")
        scope.delete("a", recursive=True)
        scope.save_cache("deps", "1", tmp_path / "folder")
        assert scope.cache_exists("deps", "1")
        scope.restore_cache("deps", "1", tmp_path / "restored")
        scope.clear_cache("deps", "1")
        scope.clear_cache("deps")
    co.data.pipeline.puts("x", b"1")
    assert co.data.archive("p1") == 1
    context.open_store().stats()


@pytest.mark.parametrize("bucket", BUCKETS)
def test_the_user_can_do_everything(
    become: Become, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONDUCTO_S3_BUCKET", bucket)
    ann = become("ann")
    assert context.identity() == ann.id
    use_everything(tmp_path)
    if bucket == BUCKETS[1]:  # what was overwritten is not kept
        listed = (
            boto3.Session()
            .client("s3")
            .list_object_versions(Bucket=bucket, Prefix=f"{ann.id}/store/names/")
        )
        assert listed.get("Versions", []) == []


def test_one_identity_by_name(become: Become, tmp_path: Path) -> None:
    become("eve", "team-e")
    use_everything(tmp_path)
    become("eve")
    with pytest.raises(AccessDenied):
        co.data.user.puts("x", b"")
    become("eve", "team-e2")
    with pytest.raises(AccessDenied):
        co.data.user.puts("x", b"")


@pytest.mark.parametrize("other", ["bob", "eve", "nobody"])
def test_another_user_is_denied_everything(become: Become, other: str, tmp_path: Path) -> None:
    ann = become("ann")
    co.data.user.puts("x", b"hers" * 100_000)
    co.data.pipeline.puts("x", b"hers")
    become(other, ann.id)
    (tmp_path / "folder").mkdir()
    operations: list[Callable[[], Any]] = []
    for scope in (co.data.user, co.data.pipeline):
        operations += [
            lambda scope=scope: scope.exists("x"),
            lambda scope=scope: scope.exists("gone"),
            lambda scope=scope: scope.gets("x"),
            lambda scope=scope: scope.get("x", tmp_path / "x"),
            lambda scope=scope: scope.size("x"),
            lambda scope=scope: scope.list(""),
            lambda scope=scope: scope.puts("x", b"mine"),
            lambda scope=scope: scope.put("x", __file__),
            lambda scope=scope: scope.delete("x"),
            lambda scope=scope: scope.delete("x", recursive=True),
            lambda scope=scope: scope.save_cache("x", "1", tmp_path / "folder"),
            lambda scope=scope: scope.restore_cache("x", "1", tmp_path / "out"),
            lambda scope=scope: scope.cache_exists("x", "1"),
            lambda scope=scope: scope.clear_cache("x"),
        ]
    operations.append(lambda: co.data.archive("p1"))
    for operation in operations:
        with pytest.raises(AccessDenied, match=f"is denied on s3://{BUCKETS[0]}/{ann.id}/"):
            operation()
    assert not (tmp_path / "x").exists()
    become("ann")
    assert co.data.user.gets("x", byte_range=[0, 4]) == b"hers"
    assert co.data.user.list("") == co.data.pipeline.list("") == ["x"]


def test_below_the_store_too(become: Become) -> None:
    """What any client of S3 may try."""
    ann = become("ann")
    co.data.user.puts("x", b"hers" * 100_000)
    prefix = f"{ann.id}/store"
    keys = [entry.key for entry in Bucket(parse_settings(f"s3://{BUCKETS[0]}/{prefix}")).list()]
    assert {key.partition("/")[0] for key in keys} >= {"castore.json", "names", "packs"}
    become("bob", ann.id)
    client = boto3.Session().client("s3")
    bucket = {"Bucket": BUCKETS[0]}
    attempts: list[Callable[[], Any]] = [
        lambda: client.list_objects_v2(**bucket),
        lambda: client.list_objects_v2(**bucket, Prefix=""),
        lambda: client.list_objects_v2(**bucket, Prefix=ann.id[:4]),
        lambda: client.list_objects_v2(**bucket, Prefix=f"{ann.id}/"),
        lambda: client.list_objects_v2(**bucket, Delimiter="/"),
        lambda: client.list_object_versions(**bucket, Prefix=f"{ann.id}/"),
        lambda: client.put_object(**bucket, Key=f"{prefix}/names/data/y", Body=b""),
        lambda: client.put_object(**bucket, Key=ann.id, Body=b""),
        lambda: client.get_object(**bucket, Key=f"{prefix}/gone"),
    ]
    for key in keys:
        whole = {**bucket, "Key": f"{prefix}/{key}"}
        attempts += [
            lambda whole=whole: client.get_object(**whole),
            lambda whole=whole: client.head_object(**whole),
            lambda whole=whole: client.put_object(**whole, Body=b""),
            lambda whole=whole: client.delete_object(**whole),
        ]
    for attempt in attempts:
        with pytest.raises(ClientError) as caught:
            attempt()
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    answer = client.delete_objects(
        **bucket, Delete={"Objects": [{"Key": f"{prefix}/{key}"} for key in keys]}
    )
    assert "Deleted" not in answer
    assert len(answer["Errors"]) == len(keys)
    with pytest.raises(AccessDenied):
        castore.open(f"s3://{BUCKETS[0]}/{prefix}", create=False)
    become("ann")
    assert co.data.user.size("x") == 400_000


class TestText:
    def test_nothing_outside_the_folder(self) -> None:
        for identity in (EACH_USER, "AIDA1", "us-east-1:0a-1b"):
            for statement in user_policy("b-1", identity)["Statement"]:
                assert statement["Effect"] == "Allow"
                on_the_bucket = statement["Resource"] == "arn:aws:s3:::b-1"
                if statement["Sid"] == "IsItVersioned":
                    assert statement["Action"] == "s3:GetBucketVersioning"
                elif on_the_bucket:
                    assert statement["Condition"] == {"StringLike": {"s3:prefix": f"{identity}/*"}}
                else:
                    assert statement["Resource"] == f"arn:aws:s3:::b-1/{identity}/*"

    @pytest.mark.parametrize("identity", ["", "*", "a/b", "a*", "${aws:username}", "a?", "a b"])
    def test_identities_that_would_mean_more(self, identity: str) -> None:
        with pytest.raises(InvalidContext, match="can't be an identity"):
            user_policy("b-1", identity)

    def test_buckets_that_are_none(self) -> None:
        for bucket in ("*", "b/*", "", "B"):
            with pytest.raises(InvalidContext, match="is not a bucket's name"):
                user_policy(bucket)

    def test_the_documents_have_it(self) -> None:
        cloud = (ROOT / "docs" / "cloud.md").read_text()
        [found] = [text for text in cloud.split("```json\n") if '"OwnObjects"' in text]
        policy = found.partition("```")[0].replace("BUCKET", "bucket")
        assert json.loads(policy) == user_policy("bucket")

    def test_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["b-1", "AIDA1"]) == 0
        assert json.loads(capsys.readouterr().out) == user_policy("b-1", "AIDA1")
        assert main([]) == 2
        assert main(["b-1", "*"]) == 1
        assert "can't be an identity" in capsys.readouterr().err
