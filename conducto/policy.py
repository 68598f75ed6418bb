"""The IAM policies that make a user's data and secrets in the cloud readable and writable by that
user alone.

`python -m conducto.policy BUCKET` prints that of data for all users of IAM at once, each in a
folder of their own; `python -m conducto.policy BUCKET IDENTITY` for one identity: a role, or
whoever sets CONDUCTO_IDENTITY_ID. `python -m conducto.policy --secrets` prints that of secrets, and
with `--admin` what those get besides who write the organization's.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from conducto.arguments import HelpWanted, Parameter, UsageError, parse
from conducto.cli import guarded, write_text
from conducto.context import IDENTITY, ORGANIZATION_DEFAULT
from conducto.errors import InvalidContext
from conducto.secrets.paths import PATH_DEFAULT, scope_path, secrets_path
from conducto.secrets.values import ORG, USER

EACH_USER = "${aws:userid}"  # IAM puts in the id of the user who asks

USAGE = """\
usage: python -m conducto.policy BUCKET [IDENTITY]
       python -m conducto.policy --secrets [IDENTITY] [--admin] [--org ORG] [--kms-key ARN]"""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_KEY_ARN = re.compile(r"arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]+:key/[A-Za-z0-9-]+")
_PARAMETER_ARN = "kms:EncryptionContext:PARAMETER_ARN"
_SECRETS = (
    Parameter("identity", "a role, or who sets CONDUCTO_IDENTITY_ID", required=False),
    Parameter("admin", "for who writes the organization's", "flag", False, False),
    Parameter("org", "the organization; else CONDUCTO_ORG_ID", "text", False, False),
    Parameter("kms_key", "the key that secrets are encrypted with", "text", False, False),
)


def user_policy(
    bucket: str, identity: str = EACH_USER, *, partition: str = "aws"
) -> dict[str, Any]:
    """A policy for the user, group or role, as `json.dumps` makes IAM take it.

    `identity` is what CONDUCTO_IDENTITY_ID or STS says (`conducto.context.identity()`), and by
    default that of each user of IAM. It gives what is needed and no more: nothing outside the
    identity's folder can be read, written or listed.
    """
    if _BUCKET.fullmatch(bucket) is None:
        raise InvalidContext(f"{bucket!r} is not a bucket's name")
    if identity != EACH_USER and IDENTITY.fullmatch(identity) is None:
        raise InvalidContext(f"{identity!r} can't be an identity")
    whole = f"arn:{partition}:s3:::{bucket}"
    own = f"{whole}/{identity}/*"
    below = {"StringLike": {"s3:prefix": f"{identity}/*"}}
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "OwnObjects",
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
                "Resource": own,
            },
            {
                # Not only to list: without it, S3 answers 403 for what is not there.
                "Sid": "OwnNames",
                "Effect": "Allow",
                "Action": "s3:ListBucket",
                "Resource": whole,
                "Condition": below,
            },
            # The rest is for buckets that keep versions, to let go of those no longer wanted.
            {
                "Sid": "IsItVersioned",
                "Effect": "Allow",
                "Action": "s3:GetBucketVersioning",
                "Resource": whole,
            },
            {
                "Sid": "OwnVersions",
                "Effect": "Allow",
                "Action": "s3:ListBucketVersions",
                "Resource": whole,
                "Condition": below,
            },
            {
                "Sid": "OwnOldVersions",
                "Effect": "Allow",
                "Action": "s3:DeleteObjectVersion",
                "Resource": own,
            },
        ],
    }


def secrets_policy(
    identity: str = EACH_USER,
    *,
    organization: str = ORGANIZATION_DEFAULT,
    admin: bool = False,
    kms_key: str | None = None,
    path: str = PATH_DEFAULT,
    partition: str = "aws",
) -> dict[str, Any]:
    """A policy for secrets in Parameter Store: those of the identity are readable and writable by
    it alone, those of the organization are readable. With `admin`, what to give in addition to
    those who write the organization's.

    `kms_key` is the ARN of the key that CONDUCTO_SECRETS_KMS_KEY_ID names; without one it is the
    account's own, which needs no policy. `path` is CONDUCTO_SECRETS_PATH. Raises InvalidContext.
    """
    if identity != EACH_USER and IDENTITY.fullmatch(identity) is None:
        raise InvalidContext(f"{identity!r} can't be an identity")
    if IDENTITY.fullmatch(organization) is None:
        raise InvalidContext(f"{organization!r} can't be an organization")
    if kms_key is not None and _KEY_ARN.fullmatch(kms_key) is None:
        raise InvalidContext(
            f"{kms_key!r} is not the ARN of a key: arn:aws:kms:REGION:ACCOUNT:key/ID"
        )
    arn = f"arn:{partition}:ssm:*:*:parameter"
    own = arn + (
        f"{path}/{USER}/{identity}" if identity == EACH_USER else scope_path(path, USER, identity)
    )
    shared = arn + scope_path(path, ORG, organization)
    if admin:
        statements = [_writes("OrgSecretsWritten", shared)]
        encrypted, decrypted = [shared], []
    else:
        statements = [
            _reads("OwnSecrets", own),
            _writes("OwnSecretsWritten", own),
            _reads("OrgSecrets", shared),
        ]
        encrypted, decrypted = [own], [own, shared]
    if kms_key is not None:
        statements += _with_key(kms_key, encrypted, decrypted)
    return {"Version": "2012-10-17", "Statement": statements}


def _reads(sid: str, folder: str) -> dict[str, Any]:
    # Who may read a path may read all below it, whatever else is denied: never one above.
    resources = [folder, f"{folder}/*"]
    return _allow(sid, ["ssm:GetParametersByPath"], resources)


def _writes(sid: str, folder: str) -> dict[str, Any]:
    return _allow(sid, ["ssm:PutParameter", "ssm:DeleteParameters"], f"{folder}/*")


def _with_key(kms_key: str, encrypted: list[str], decrypted: list[str]) -> list[dict[str, Any]]:
    """The use of a key, for the parameters below these folders and for nothing else."""
    statements = []
    for sid, actions, folders in (
        ("SecretsEncrypted", ["kms:Encrypt", "kms:GenerateDataKey"], encrypted),
        ("SecretsDecrypted", ["kms:Decrypt"], decrypted),
    ):
        if folders:
            below = {_PARAMETER_ARN: [f"{folder}/*" for folder in folders]}
            statements.append({**_allow(sid, actions, kms_key), "Condition": {"StringLike": below}})
    return statements


def _allow(sid: str, actions: list[str], resource: str | list[str]) -> dict[str, Any]:
    return {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resource}


def main(argv: Sequence[str]) -> int:
    """Print what the arguments ask for; the exit code."""
    try:
        policy = _secrets(argv[1:]) if argv[:1] == ["--secrets"] else _data(argv)
    except (UsageError, HelpWanted):
        print(USAGE, file=sys.stderr)
        return 2
    except InvalidContext as error:
        print(f"conducto.policy: {error}", file=sys.stderr)
        return 1
    write_text(json.dumps(policy, indent=2) + "\n")
    return 0


def _data(argv: Sequence[str]) -> dict[str, Any]:
    if not 1 <= len(argv) <= 2 or argv[0].startswith("-"):
        raise UsageError("a bucket is missing")
    return user_policy(*argv)


def _secrets(argv: Sequence[str]) -> dict[str, Any]:
    given = parse(_SECRETS, argv)
    kms_key = given.get("kms_key")
    assert isinstance(kms_key, str | None)
    organization = given.get("org") or os.environ.get("CONDUCTO_ORG_ID") or ORGANIZATION_DEFAULT
    return secrets_policy(
        str(given.get("identity", EACH_USER)),
        organization=str(organization),
        admin=bool(given.get("admin", False)),
        kms_key=kms_key,
        path=secrets_path(),
    )


if __name__ == "__main__":
    sys.exit(guarded("conducto.policy", lambda: main(sys.argv[1:])))
