"""`co.api.Secrets`, on this machine and on moto, in each of its spellings."""

from __future__ import annotations

import os
import traceback
from typing import Any

import boto3
import pytest

import conducto as co
from conducto import secrets
from conducto.api import Secret, SecretKey
from conducto.errors import InvalidSecret, SecretNotFound, SecretsError

pytest_plugins = ["modes"]

cloud_only = pytest.mark.parametrize("mode", ["cloud"], indirect=True)


@pytest.fixture(autouse=True)
def one_organization(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDUCTO_ORG_ID", f"org-{os.urandom(8).hex()}")


def test_user_and_organization() -> None:
    api = co.api.Secrets()
    assert api.get() == []
    api.put_user_secrets({"A": "1", "B": "of the user"})
    api.put_org_secrets({"B": "of all", "C": "two\nlines\n"})
    assert api.get_user_secrets() == {"A": "1", "B": "of the user"}
    assert api.get_org_secrets() == {"B": "of all", "C": "two\nlines\n"}
    both = {"A": "1", "B": "of the user", "C": "two\nlines\n"}
    assert api.get_user_secrets(include_org_secrets=True) == both
    assert secrets.environment() == both
    assert api.get_user_secrets(obfuscate=True) == {"A": "***", "B": "***"}
    assert api.get_org_secrets(obfuscate=True) == {"B": "***", "C": "***"}


def test_as_they_were_spelled_once() -> None:
    token = co.api.Auth().get_token_from_shell()
    api = co.api.Secrets()
    api.put_user_secrets(token, {"A": 1}, replace=False)
    api.put_user_secrets({"B": "2"}, token)
    api.put_user_secrets(token=token, secrets={"C": "3"})
    assert api.get_user_secrets(token) == {"A": "1", "B": "2", "C": "3"}
    api.put_user_secrets(None, {"D": "4"}, True)
    assert api.get_user_secrets(token=token) == {"D": "4"}
    api.put_org_secrets(token, {"A": "1", "B": "2"}, False)
    api.put_org_secrets(token, {"B": "3"}, replace=True)
    assert api.get_org_secrets(token) == {"B": "3"}
    api.put_org_secrets(token, {}, replace=True)
    assert api.get_org_secrets(token) == {}
    api.delete_user_secrets(token, ["D"])
    assert api.get(token) == []
    api.put([Secret("A", "a", "org")], token)
    api.put(token, Secret("B", "b"))
    api.delete_org_secrets(["A"], token)
    api.delete(token, [SecretKey("B")])
    assert api.get() == []


def test_secrets_by_themselves() -> None:
    api = co.api.Secrets()
    wanted = [
        Secret("A", "x" * 7000),
        Secret("A", "eu-west-1", scope="org", mask=False),
        Secret("B", "conducto:unmasked: is how this begins"),
        Secret("C", "conducto:masked:", "org", False),
        Secret("D", " ü\t\"'\\ "),
    ]
    api.put(wanted)
    assert sorted(api.get(), key=repr) == sorted(wanted, key=repr)
    masker = secrets.for_nodes().masker()
    printed = f"{'x' * 7000} eu-west-1".encode()
    assert masker.feed(printed) + masker.flush() == b"*** eu-west-1"
    assert wanted[1].as_dict() == {
        "scope": "org",
        "key": "A",
        "value": "eu-west-1",
        "mask": False,
    }
    with pytest.raises(SecretNotFound, match=r"no secret D \(org\): nothing was deleted"):
        api.delete([SecretKey("A"), SecretKey("D", "org")])
    api.delete([SecretKey("A"), *wanted[2:]])
    assert api.get() == [wanted[1]]
    api.delete(co.api.SecretKey("A", "org"))
    assert api.get() == []


def test_many() -> None:
    """More than a request names."""
    api = co.api.Secrets()
    many = {f"K{n}": str(n) for n in range(23)}
    api.put_org_secrets(many)
    assert api.get_org_secrets() == many
    api.put_org_secrets({"K1": "x", "L": "y"}, replace=True)
    assert api.get_org_secrets() == {"K1": "x", "L": "y"}


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("token",),
        ({"A-B": "s3kr1t"},),
        ({"s3kr1t=": "s3kr1t"},),
        ({"GOOD": "s3kr1t", "A": ""},),
        ({"A": None},),
        ({"A": b"s3kr1t"},),
        ({"A": "s3kr1t\0"},),
        ({"A": "s3kr1t" * 2000},),
        (["s3kr1t"],),
        ({"A": "s3kr1t"}, {"B": "s3kr1t"}),
    ],
)
def test_what_can_not_be_put_changes_nothing(given: tuple[Any, ...]) -> None:
    api = co.api.Secrets()
    api.put_user_secrets({"A": "before"})
    for put in (api.put_user_secrets, api.put_org_secrets, api.put):
        with pytest.raises(InvalidSecret) as caught:
            put(*given)
        # Not even where the locals of all frames are shown, but for those of who called it.
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        shown.stack = traceback.StackSummary(shown.stack[1:])
        assert "s3kr1t" not in "".join(shown.format())
    assert api.get_user_secrets() == {"A": "before"}
    assert api.get_org_secrets() == {}


def test_names_that_can_not_be_deleted() -> None:
    api = co.api.Secrets()
    with pytest.raises(InvalidSecret):
        api.delete_user_secrets({"A": "x"})
    with pytest.raises(InvalidSecret):
        api.delete([SecretKey("A", "team")])
    with pytest.raises(InvalidSecret):
        api.delete(["A"])
    with pytest.raises(SecretNotFound):
        api.delete_org_secrets(["A"])


@cloud_only
class TestInTheCloud:
    def test_a_parameter_each(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CONDUCTO_SECRETS_PATH", "/stage/conducto")
        monkeypatch.setenv("CONDUCTO_SECRETS_KMS_KEY_ID", "alias/of-ours")
        monkeypatch.setenv("CONDUCTO_IDENTITY_ID", "us-east-1:a.b@c")
        co.api.Secrets().put_user_secrets({"A": "plain"})
        client = boto3.client("ssm")
        name = "/stage/conducto/user/us-east-1.3Aa.2Eb.40c/A"
        assert client.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"] == "plain"
        [described] = client.describe_parameters(
            ParameterFilters=[{"Key": "Name", "Values": [name]}]
        )["Parameters"]
        assert described["Type"] == "SecureString"
        assert described["KeyId"] == "alias/of-ours"
        co.api.Secrets().delete_user_secrets(["A"])

    def test_whose_names_begin_alike(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for identity in ("a", "ab", "a/b", "a.b"):
            monkeypatch.setenv("CONDUCTO_IDENTITY_ID", identity)
            if "/" in identity:
                with pytest.raises(co.ContextError, match="can't be an identity"):
                    co.api.Secrets().get()
            else:
                assert co.api.Secrets().get_user_secrets() == {}
                co.api.Secrets().put_user_secrets({"A": identity})
        for identity in ("a", "ab", "a.b"):
            monkeypatch.setenv("CONDUCTO_IDENTITY_ID", identity)
            assert secrets.environment() == {"A": identity}
            co.api.Secrets().put_user_secrets({}, replace=True)

    def test_what_others_put_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It may be a secret; but nobody's nodes run what it says, and it stays."""
        folder = f"/conducto/org/{os.environ['CONDUCTO_ORG_ID']}"
        client = boto3.client("ssm")
        for key in ("GOOD", "LD_PRELOAD", "not-a-variable", "deeper/A"):
            client.put_parameter(Name=f"{folder}/{key}", Value="x", Type="SecureString")
        assert secrets.environment() == {"GOOD": "x"}
        co.api.Secrets().put_org_secrets({"A": "1"}, replace=True)
        assert secrets.environment() == {"A": "1"}
        assert client.get_parameter(Name=f"{folder}/LD_PRELOAD")["Parameter"]["Value"]

    @pytest.mark.parametrize("path", ["conducto", "/", "/a/", "/a b", "/AWS/x", "/ssm", "/ü"])
    def test_paths_that_can_not_be(self, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
        monkeypatch.setenv("CONDUCTO_SECRETS_PATH", path)
        with pytest.raises(co.ContextError, match="CONDUCTO_SECRETS_PATH"):
            co.api.Secrets().get()

    def test_no_region(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_DEFAULT_REGION")
        with pytest.raises(co.ContextError, match="Set AWS_REGION"):
            co.api.Secrets().get()


def test_all_errors_have_a_base() -> None:
    assert issubclass(InvalidSecret, SecretsError)
    assert issubclass(SecretNotFound, SecretsError | LookupError)
