"""The policies of `conducto.policy --secrets`, held by a server that enforces them: a user's
secrets are that user's, and the organization's are written by admins alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from iam_server import server

import conducto as co
from castore.errors import AccessDenied, CredentialsError
from conducto import secrets
from conducto.errors import InvalidContext
from conducto.policy import EACH_USER, main, secrets_policy

pytest_plugins = ["servers"]

KEY = "arn:aws:kms:us-east-1:123456789012:key/0a1b-2c"
VALUE = "s3kr1t"

Users = dict[str, dict[str, str]]
Become = Callable[..., None]


def set_up(endpoint_url: str) -> Users:
    """ann and bob are members, ada is a member and an admin, eve has a role's own policy, nobody
    has none."""
    iam = boto3.Session("setup", "setup", region_name="us-east-1").client(
        "iam", endpoint_url=endpoint_url
    )
    policies = {
        "members": secrets_policy(kms_key=KEY),
        "admins": secrets_policy(admin=True, kms_key=KEY),
    }
    for group, policy in policies.items():
        iam.create_group(GroupName=group)
        iam.put_group_policy(GroupName=group, PolicyName=group, PolicyDocument=json.dumps(policy))
    groups = {
        "ann": ["members"],
        "bob": ["members"],
        "ada": ["members", "admins"],
        "eve": [],
        "nobody": [],
    }
    users = {}
    for name, member_of in groups.items():
        user_id = iam.create_user(UserName=name)["User"]["UserId"]
        key = iam.create_access_key(UserName=name)["AccessKey"]
        users[name] = {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            "CONDUCTO_IDENTITY_ID": user_id,
        }
        for group in member_of:
            iam.add_user_to_group(GroupName=group, UserName=name)
    policy = json.dumps(secrets_policy("team:e@x", kms_key=KEY))
    iam.put_user_policy(UserName="eve", PolicyName="hers", PolicyDocument=policy)
    users["eve"]["CONDUCTO_IDENTITY_ID"] = "team:e@x"
    return users


@pytest.fixture(scope="module")
def cloud() -> Iterator[tuple[str, Users]]:
    with server(set_up) as running:
        yield running


@pytest.fixture(params=[None, KEY], ids=["account's key", "own key"])
def become(
    request: pytest.FixtureRequest,
    aws_environment: None,
    cloud: tuple[str, Users],
    monkeypatch: pytest.MonkeyPatch,
) -> Become:
    """`become("ann")`: this process is hers from now on; with `identity`, in another's place."""
    endpoint_url, users = cloud
    for name in ("CONDUCTO_ORG_ID", "CONDUCTO_SECRETS_PATH", "CONDUCTO_SECRETS_KMS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    if request.param is not None:
        monkeypatch.setenv("CONDUCTO_SECRETS_KMS_KEY_ID", request.param)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint_url)
    monkeypatch.setenv("CONDUCTO_EXECUTION_ENV", "worker_cloud")

    def become(name: str, identity: str | None = None) -> None:
        for variable, value in users[name].items():
            monkeypatch.setenv(variable, value)
        if identity is not None:
            monkeypatch.setenv("CONDUCTO_IDENTITY_ID", users[identity]["CONDUCTO_IDENTITY_ID"])

    return become


def test_members_and_admins(become: Become) -> None:
    api = co.api.Secrets()
    become("ada")
    api.put_org_secrets({"SHARED": "of all", "BOTH": "of all"}, replace=True)
    for name in ("ann", "bob", "eve", "ada"):
        become(name)
        api.put_user_secrets({"A": f"{name}'s", "BOTH": f"{name}'s"}, replace=True)
        api.put_user_secrets({"B": VALUE})
        api.delete_user_secrets(["B"])
        expected = {"SHARED": "of all", "A": f"{name}'s", "BOTH": f"{name}'s"}
        assert secrets.environment() == expected
    become("ada")
    api.delete_org_secrets(["SHARED"])
    become("bob")
    assert secrets.environment() == {"A": "bob's", "BOTH": "bob's"}


def test_a_member_can_not_write_the_organizations(become: Become) -> None:
    api = co.api.Secrets()
    become("ada")
    api.put_org_secrets({"SHARED": "of all"}, replace=True)
    for name in ("ann", "eve"):
        become(name)
        with pytest.raises(AccessDenied, match=r"ssm:PutParameter is denied on /conducto/org/def"):
            api.put_org_secrets({"SHARED": VALUE})
        with pytest.raises(AccessDenied, match="ssm:PutParameter is denied"):
            api.put_org_secrets({"NEW": VALUE}, replace=True)
        with pytest.raises(AccessDenied, match="ssm:DeleteParameters is denied"):
            api.delete_org_secrets(["SHARED"])
        with pytest.raises(AccessDenied, match="ssm:DeleteParameters is denied"):
            api.put_org_secrets({}, replace=True)
        assert api.get_org_secrets() == {"SHARED": "of all"}


def test_nobody_reaches_anothers(become: Become) -> None:
    api = co.api.Secrets()
    become("ann")
    api.put_user_secrets({"A": "ann's"}, replace=True)
    for name in ("bob", "ada", "eve", "nobody"):
        become(name, "ann")
        with pytest.raises(
            AccessDenied, match="ssm:GetParametersByPath is denied on /conducto/use"
        ):
            api.get_user_secrets()
        with pytest.raises(AccessDenied, match="ssm:PutParameter is denied"):
            api.put_user_secrets({"A": VALUE})
        with pytest.raises(AccessDenied):
            api.delete_user_secrets(["A"])
        with pytest.raises(AccessDenied):
            secrets.environment()
    become("ann")
    assert api.get_user_secrets() == {"A": "ann's"}


def test_not_by_the_server_itself(
    become: Become, cloud: tuple[str, Users], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever bob asks, not only what conducto would."""
    become("ann")
    co.api.Secrets().put_user_secrets({"A": VALUE}, replace=True)
    ann = cloud[1]["ann"]["CONDUCTO_IDENTITY_ID"]
    become("bob")
    client = boto3.Session().client("ssm")
    name = f"/conducto/user/{ann}/A"
    attempts: list[Callable[[], Any]] = [
        lambda: client.get_parameter(Name=name, WithDecryption=True),
        lambda: client.get_parameters(Names=[name], WithDecryption=True),
        lambda: client.get_parameter_history(Name=name, WithDecryption=True),
        lambda: client.delete_parameter(Name=name),
        lambda: client.delete_parameters(Names=[name]),
        lambda: client.put_parameter(Name=name, Value="x", Type="String", Overwrite=True),
    ]
    for path in ("/", "/conducto", "/conducto/user", f"/conducto/user/{ann}"):
        attempts.append(
            lambda path=path: client.get_parameters_by_path(
                Path=path, Recursive=True, WithDecryption=True
            )
        )
    for attempt in attempts:
        with pytest.raises(ClientError, match="AccessDenied"):
            attempt()


def test_unknown_credentials(become: Become, monkeypatch: pytest.MonkeyPatch) -> None:
    become("ann")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(CredentialsError, match="there are no AWS credentials"):
        secrets.environment()


class TestText:
    def test_nothing_outside_the_paths(self) -> None:
        for identity, folder in ((EACH_USER, EACH_USER), ("us:a.b", "us.3Aa.2Eb")):
            for admin in (False, True):
                policy = secrets_policy(identity, organization="o", admin=admin, kms_key=KEY)
                for statement in policy["Statement"]:
                    assert statement["Effect"] == "Allow"
                    text = json.dumps(statement)
                    own, shared = f"/user/{folder}", "/org/o"
                    assert (
                        f"parameter/conducto{own}" in text or f"parameter/conducto{shared}" in text
                    )
                    writes = {"ssm:PutParameter", "ssm:DeleteParameters", "kms:Encrypt"}
                    if writes & set(statement["Action"]):
                        assert (shared in text) == admin
                        assert (own in text) != admin
                    if statement["Resource"] == KEY:
                        assert "Condition" in statement

    def test_what_would_mean_more(self) -> None:
        for name in ("", "*", "a/b", "a*", "${aws:username}", "a?"):
            with pytest.raises(InvalidContext, match="can't be an identity"):
                secrets_policy(name)
            with pytest.raises(InvalidContext, match="can't be an organization"):
                secrets_policy(organization=name)
        for key in ("*", "alias/x", f"{KEY}*"):
            with pytest.raises(InvalidContext, match="is not the ARN of a key"):
                secrets_policy(kms_key=key)

    def test_command(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("CONDUCTO_ORG_ID", "o")
        monkeypatch.delenv("CONDUCTO_SECRETS_PATH", raising=False)
        for argv, policy in (
            ([], secrets_policy(organization="o")),
            (["AIDA1", "--org=p"], secrets_policy("AIDA1", organization="p")),
            (
                ["--admin", "--kms-key", KEY],
                secrets_policy(organization="o", admin=True, kms_key=KEY),
            ),
        ):
            assert main(["--secrets", *argv]) == 0
            assert json.loads(capsys.readouterr().out) == policy
        assert main(["--secrets", "a", "b"]) == 2
        assert main(["--help"]) == 2
        assert main(["--secrets", "*"]) == 1
        assert main(["--secrets", "--org=*"]) == 1
        monkeypatch.setenv("CONDUCTO_SECRETS_PATH", "/stage")
        capsys.readouterr()
        assert main(["--secrets"]) == 0
        assert json.loads(capsys.readouterr().out) == secrets_policy(
            organization="o", path="/stage"
        )
