"""The IAM policy that makes a user's data in the cloud readable and writable by that user alone.

`python -m conducto.policy BUCKET` prints it for all users of IAM at once, each in a folder of
their own; `python -m conducto.policy BUCKET IDENTITY` for one identity: a role, or whoever sets
CONDUCTO_IDENTITY_ID.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from conducto.context import IDENTITY
from conducto.errors import InvalidContext

EACH_USER = "${aws:userid}"  # IAM puts in the id of the user who asks

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


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


def main(argv: Sequence[str]) -> int:
    if not 1 <= len(argv) <= 2 or argv[0].startswith("-"):
        print("usage: python -m conducto.policy BUCKET [IDENTITY]", file=sys.stderr)
        return 2
    try:
        policy = user_policy(*argv)
    except InvalidContext as error:
        print(f"conducto.policy: {error}", file=sys.stderr)
        return 1
    print(json.dumps(policy, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
