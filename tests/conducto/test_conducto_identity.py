"""Whose data it is, its versions, its URLs, and many that use it at once."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import boto3
import pytest
from fault_proxy import FaultProxy, answer

import castore
import conducto as co
from castore import errors
from castore.s3.client import identity, versions
from castore.s3.client.connection import Connection
from castore.s3.client.settings import parse_settings
from conducto import context

pytest_plugins = ["modes"]

cloud_only = pytest.mark.parametrize("mode", ["cloud"], indirect=True)


class TestIdentity:
    @cloud_only
    def test_by_default_it_is_that_of_the_credentials(
        self, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("CONDUCTO_IDENTITY_ID")
        asked = boto3.Session().client("sts").get_caller_identity()
        assert context.identity() == asked["UserId"]
        assert context.store_url() == (
            f"s3://{os.environ['CONDUCTO_S3_BUCKET']}/{asked['UserId']}/store"
        )
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
        assert context.identity() == asked["UserId"]  # it is asked once
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "others")
        with pytest.raises(
            co.ContextError, match=r"CONDUCTO_IDENTITY_ID is not set.*127\.0\.0\.1:9"
        ):
            context.identity()  # but not of others

    @cloud_only
    def test_without_credentials(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CONDUCTO_IDENTITY_ID")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        with pytest.raises(
            co.ContextError, match=r"whose data is it\? CONDUCTO_IDENTITY_ID .*no AWS credentials"
        ) as caught:
            co.data.user.gets("x")
        assert isinstance(caught.value.__cause__, errors.CredentialsError)

    @cloud_only
    @pytest.mark.parametrize(
        "page", [b"<html><body>Please log in</body></html>", b"<a/>", b"{}", b""], ids=range(4)
    )
    def test_a_server_that_has_no_sts_may_answer_anything(
        self, page: bytes, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("CONDUCTO_IDENTITY_ID")
        with FaultProxy("127.0.0.1:9") as proxy:
            proxy.inject("POST", "", answer(200, body=page), times=9)
            monkeypatch.setenv("AWS_ENDPOINT_URL_STS", proxy.url)
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "others")  # what is known is not asked again
            with pytest.raises(co.ContextError, match="CONDUCTO_IDENTITY_ID is not set"):
                context.identity()

    def test_a_profile_of_other_credentials_is_another(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """By both names that botocore has for it; the answer for one is not that for the other."""
        for name in list(os.environ):
            if name.startswith("AWS_"):
                monkeypatch.delenv(name)
        config = tmp_path / "config"
        config.write_text(
            "[profile a]\naws_access_key_id = of-a\naws_secret_access_key = s\n"
            "[profile b]\naws_access_key_id = of-b\naws_secret_access_key = s\nregion = eu-west-3\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        said = (
            b"<GetCallerIdentityResponse><GetCallerIdentityResult><UserId>%b</UserId>"
            b"<Arn>arn:aws:iam::1:user/x</Arn></GetCallerIdentityResult>"
            b"</GetCallerIdentityResponse>"
        )
        with FaultProxy("127.0.0.1:9") as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL_STS", proxy.url)
            for variable in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
                with monkeypatch.context() as patch:
                    for profile, region in (("a", "us-east-1"), ("b", "eu-west-3")):
                        patch.setenv(variable, profile)
                        proxy.clear()
                        proxy.rules.clear()
                        proxy.inject("POST", "", answer(200, body=said % profile.encode()))
                        for _ in range(2):
                            assert castore.caller_identity(f"s3://{variable.lower()}") == profile
                        [exchange] = proxy.matching()
                        signed = exchange.headers["authorization"]
                        assert f"Credential=of-{profile}/" in signed
                        assert f"/{region}/sts/" in signed
            proxy.inject("POST", "", answer(200, body=said % b"c"))
            asked = castore.caller_identity("s3://bucket", profile="a", region="eu-north-1")
            assert asked == "c"
            assert "/eu-north-1/sts/" in proxy.matching()[-1].headers["authorization"]

    @pytest.mark.parametrize(
        "name",
        [
            "AWS_ACCESS_KEY_ID",
            "AWS_CONFIG_FILE",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_DEFAULT_PROFILE",
            "AWS_PROFILE",
            "AWS_ROLE_ARN",
            "AWS_SHARED_CREDENTIALS_FILE",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
        ],
    )
    def test_what_was_learned_with_other_credentials_is_not_used(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = identity.chosen_by()
        monkeypatch.setenv(name, "another")
        assert identity.chosen_by() != before

    @cloud_only
    @pytest.mark.parametrize(
        ("status", "code", "kind", "words"),
        [
            (403, "InvalidClientTokenId", errors.CredentialsError, "does not accept the AWS cred"),
            (400, "MissingAction", errors.CredentialsError, "MissingAction: not now"),
            (400, "Throttling", errors.RemoteError, "was throttled"),
            (500, "InternalFailure", errors.RemoteError, "answered with 500 InternalFailure"),
        ],
    )
    def test_what_sts_refuses(
        self,
        status: int,
        code: str,
        kind: type[Exception],
        words: str,
        mode: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A busy server says nothing of the credentials."""
        monkeypatch.setattr(identity, "ATTEMPTS_MAX", 1)
        said = f"<ErrorResponse><Error><Code>{code}</Code><Message>not now</Message></Error>"
        with FaultProxy("127.0.0.1:9") as proxy:
            body = f"{said}</ErrorResponse>".encode()
            proxy.inject("POST", "", answer(status, body=body), times=9)
            monkeypatch.setenv("AWS_ENDPOINT_URL_STS", proxy.url)
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"of {status} {code}")
            with pytest.raises(kind, match=words) as caught:
                castore.caller_identity("s3://bucket")
            assert type(caught.value) is kind
            assert proxy.count() == 1

    @pytest.mark.parametrize(
        ("user_id", "arn", "expected"),
        [
            ("AIDA1", "arn:aws:iam::123:user/team/alice", "AIDA1"),
            ("123", "arn:aws:iam::123:root", "123"),
            ("123:bob", "arn:aws:sts::123:federated-user/bob", "123:bob"),
            ("AROA1:botocore-session-17", "arn:aws:sts::123:assumed-role/nodes/x", "AROA1"),
            ("AROA1:i-0abc", "arn:aws-cn:sts::123:assumed-role/nodes/i-0abc", "AROA1"),
            (
                "AROA2:eve@example.com",
                "arn:aws:sts::123:assumed-role/AWSReservedSSO_Dev_0a1b/eve@example.com",
                "AROA2:eve@example.com",
            ),
        ],
    )
    def test_who_stays_the_same(self, user_id: str, arn: str, expected: str) -> None:
        from castore.s3.client.identity import user_or_role

        assert user_or_role({"UserId": user_id, "Arn": arn}) == expected


@cloud_only
class TestVersions:
    """A bucket that keeps versions: what is overwritten or deleted is not kept, where it is up to
    us."""

    @pytest.fixture(autouse=True)
    def versioned(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        bucket = f"versioned-{os.urandom(4).hex()}"
        self.client = boto3.Session().client("s3")
        self.client.create_bucket(Bucket=bucket)
        self.client.put_bucket_versioning(
            Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
        )
        monkeypatch.setenv("CONDUCTO_S3_BUCKET", bucket)
        self.bucket = bucket

    def kept(self, key: str) -> list[tuple[str, bool]]:
        """The versions of what begins with the key, and whether each is the current one."""
        page = self.client.list_object_versions(Bucket=self.bucket)
        return sorted(
            (version["Key"].partition("/names/")[2], version["IsLatest"])
            for kind in ("Versions", "DeleteMarkers")
            for version in page.get(kind, ())
            if f"/store/names/{key}" in version["Key"]
        )

    def test_put(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"3")
        co.data.user.puts("xy", b"other")
        co.data.user.put("xy", tmp_path / "file", skip_cleanup=True)
        co.data.user.puts("x", b"1")
        co.data.user.puts("x", b"2")
        assert self.kept("data/x") == [("data/x", True), ("data/xy", False), ("data/xy", True)]
        co.data.user.put("x", tmp_path / "file", skip_cleanup=True)
        co.data.user.put("x", tmp_path / "file", True)
        assert len(self.kept("data/x")) == 5
        co.data.user.put("x", tmp_path / "file")
        assert self.kept("data/x") == [("data/x", True), ("data/xy", False), ("data/xy", True)]
        assert co.data.user.gets("x") == b"3"

    def test_delete(self) -> None:
        for name in ("a", "a/b", "a/c/d", "a2"):
            co.data.user.puts(name, b"1")
        co.data.user.delete("a")
        assert [name for name, _ in self.kept("data/a")] == [
            "data/" + n for n in ("a", "a/b", "a/c/d", "a2")
        ]
        co.data.user.puts("a/b", b"2")
        co.data.user.delete("a", recursive=True)
        assert all(latest for _, latest in self.kept("data/a"))  # delete markers, and a2
        assert co.data.user.list("") == ["a2"]

    def test_caches_and_archive(self, tmp_path: Path) -> None:
        (tmp_path / "d").mkdir()
        for _ in range(2):
            co.data.pipeline.save_cache("deps", "1", tmp_path / "d")
        assert len(self.kept("pipelines/")) == 1
        co.data.pipeline.clear_cache("deps", "1")
        co.data.pipeline.save_cache("deps", "1", tmp_path / "d")
        co.data.pipeline.clear_cache("deps")
        co.data.pipeline.puts("x", b"1")
        co.data.archive("p1")
        assert all(latest for _, latest in self.kept("pipelines/"))
        assert co.data.pipeline.list("") == []

    def test_many_versions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(versions, "DELETE_MANY_MAX", 2)
        settings = parse_settings(f"s3://{self.bucket}/p")
        for n in range(5):
            self.client.put_object(Bucket=self.bucket, Key="p/k", Body=b"%d" % n)
        self.client.put_object(Bucket=self.bucket, Key="p/k2", Body=b"")
        call = Connection.call
        pages = 0

        def two_at_a_time(self: Connection, operation: str, **parameters: Any) -> dict[str, Any]:
            nonlocal pages
            if operation == "list_object_versions":
                pages += 1
                parameters["MaxKeys"] = 2
            return call(self, operation, **parameters)

        monkeypatch.setattr(Connection, "call", two_at_a_time)
        assert versions.remove_old_versions(settings, "k") == 4
        assert pages == 3
        monkeypatch.setattr(Connection, "call", call)
        assert versions.remove_old_versions(settings, "k") == 0
        assert self.client.get_object(Bucket=self.bucket, Key="p/k")["Body"].read() == b"4"

    def test_a_server_that_fails_is_no_failure_of_the_put(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        co.data.user.puts("x", b"1")

        call = Connection.call

        def fail(self: Connection, operation: str, **parameters: Any) -> dict[str, Any]:
            if operation == "list_object_versions":
                raise errors.RemoteError("out of order")
            return call(self, operation, **parameters)

        monkeypatch.setattr(Connection, "call", fail)
        co.data.user.puts("x", b"2")
        assert co.data.user.gets("x") == b"2"
        assert len(self.kept("data/x")) == 2


class TestUrl:
    def test_path_only(self, mode: str) -> None:
        url = co.data.pipeline.url("/plots/a b&c.png")
        assert url == "/gw/manager/data/p1/pipeline/plots/a%20b%26c.png"
        assert co.data.user.url("x") == "/gw/manager/data/p1/user/x"
        assert co.data.user.bound(pipeline_id="p2").url("x") == "/gw/manager/data/p2/user/x"

    def test_whole(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(co.ContextError, match="CONDUCTO_AUTO_URL"):
            co.data.pipeline.url("x", path_only=False)
        monkeypatch.setenv("CONDUCTO_AUTO_URL", "https://app.example/")
        expected = "https://app.example/gw/manager/data/p1/pipeline/x"
        assert co.data.pipeline.url("x", path_only=False) == expected

    def test_needs_a_pipeline(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CONDUCTO_PIPELINE_ID")
        with pytest.raises(co.ContextError):
            co.data.user.url("x")


def _put_many(worker: int, count: int) -> None:
    for n in range(count):
        co.data.pipeline.puts(f"worker{worker}/{n}", f"{worker}:{n}".encode() * 1000)


class TestManyAtOnce:
    COUNTS: ClassVar[dict[str, int]] = {"local": 20, "cloud": 5}  # of puts by each

    def test_threads_open_one_store(self, mode: str) -> None:
        count = self.COUNTS[mode]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(_put_many, range(8), [count] * 8))
        assert len(co.data.pipeline.list("worker")) == 8 * count
        assert co.data.pipeline.gets("worker3/4", byte_range=[0, 3]) == b"3:4"
        assert len(context._stores) == 1

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
    def test_forked_workers(self, mode: str) -> None:
        count = self.COUNTS[mode]
        co.data.pipeline.puts("before", b"1")
        fork = multiprocessing.get_context("fork")
        workers = [fork.Process(target=_put_many, args=(worker, count)) for worker in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
        assert len(co.data.pipeline.list("worker")) == 3 * count
        assert co.data.pipeline.gets("before") == b"1"
