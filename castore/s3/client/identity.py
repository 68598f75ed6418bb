"""Who the AWS credentials are, by STS: the same answer for every process that has them.

A role's session names are made up by whoever assumes it, anew in each process: the role is who they
are. Only IAM Identity Center names sessions after its users.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from botocore.config import Config

from castore.errors import CredentialsError
from castore.s3.client.connection import converted, parsed, session_for
from castore.s3.client.faults import Broken, Fault, Refused, Request, fault_of
from castore.s3.client.settings import S3Settings, parse_settings

ATTEMPTS_MAX = 3
_CHOSEN_BY = (
    "AWS_ACCESS_KEY_ID",
    "AWS_CONFIG_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_DEFAULT_PROFILE",
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)


def caller_identity(url: str, **options: Any) -> str:
    """Who the AWS credentials are that a store at `s3://bucket/prefix` would be opened with: the
    id of the user or role. It is what IAM's `${aws:userid}` is, up to the name of a role's session
    (but for users of IAM Identity Center, who have their names in it). `options` are those of
    `castore.open` that say how to talk to S3. The store itself is not asked, and need not exist.

    Asked of STS once per process and choice of credentials. Raises ValueError for what is no such
    URL; CredentialsError, EndpointUnreachable, RemoteError.
    """
    return _asked(parse_settings(url, **options), chosen_by())


def chosen_by() -> tuple[str | None, ...]:
    """What in the environment chooses the credentials: what was learned with others is not used."""
    return tuple(os.environ.get(name) for name in _CHOSEN_BY)


@lru_cache(maxsize=16)
def _asked(settings: S3Settings, credentials: tuple[str | None, ...]) -> str:
    endpoint, region = "STS", settings.region or "us-east-1"
    try:
        with converted(settings, "GetCallerIdentity"):
            session = session_for(settings)
            region = session.get_config_variable("region") or region
            config = Config(
                retries={"total_max_attempts": ATTEMPTS_MAX, "mode": "standard"},
                connect_timeout=settings.connect_timeout_s,
                read_timeout=settings.read_timeout_s,
            )
            client = session.create_client("sts", region_name=region, config=config)
            endpoint = client.meta.endpoint_url
            try:
                with parsed:
                    return user_or_role(client.get_caller_identity())
            finally:
                client.close()
    except (Refused, Broken) as failure:
        request = Request("sts:GetCallerIdentity", "", endpoint, "", endpoint, region)
        fault = fault_of(failure, request)
        busy = isinstance(fault, Fault) and fault.repeat  # STS throttles with a 400
        if isinstance(failure, Refused) and failure.status in (400, 403) and not busy:
            raise CredentialsError(
                f"{endpoint} does not accept the AWS credentials ({failure.code}: "
                f"{failure.message}): renew them, or choose others with AWS_PROFILE or "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from failure
        raise (fault.error if isinstance(fault, Fault) else fault) from failure


def user_or_role(answer: dict[str, Any]) -> str:
    """The part of GetCallerIdentity's answer that stays the same."""
    user_id, arn = str(answer["UserId"]), str(answer["Arn"])
    kind, _, rest = arn.rpartition(":")[2].partition("/")
    if kind == "assumed-role" and not rest.startswith("AWSReservedSSO_"):
        return user_id.partition(":")[0]
    return user_id
