"""Where the keys of a bucket are.

botocore's client knows all of AWS's ways, and takes longer to make than all else that a process
which reads one range does. So where the way is plain it is known here: an endpoint that was named,
or one of AWS's own regions, a bucket whose name can be a part of a host's, and nothing in AWS's
configuration that has to do with endpoints.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from castore.s3.client.settings import S3Settings

_AWS = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu")
_REGION = re.compile(r"(us|eu|ap|sa|ca|me|af|il|mx)-[a-z]+-[0-9]")  # of the partition `aws`
_ENDPOINT = re.compile(r"https?://[a-z0-9.-]+(:[0-9]+)?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_GLOBAL = "us-east-1"  # of who names no region, and the host that names none

# What may change where a request goes, or how it is signed, in the environment and in ~/.aws.
_VARIABLES = (
    "AWS_DATA_PATH",
    "AWS_DEFAULTS_MODE",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_SIGV4A_SIGNING_REGION_SET",
    "AWS_S3_",
    "AWS_USE_",
)
_ENTRIES = {
    "data_path",
    "defaults_mode",
    "endpoint_url",
    "ignore_configured_endpoint_urls",
    "s3",
    "services",
    "sigv4a_signing_region_set",
    "use_dualstack_endpoint",
    "use_fips_endpoint",
}


class Address(NamedTuple):
    """`base` is what comes before a key; `region` is the one that requests are signed for."""

    endpoint: str
    base: str
    region: str


def plain_address(session: Any, settings: S3Settings) -> Address | None:
    """None where botocore's client is to be asked. `session` is botocore's."""
    if _BUCKET.fullmatch(settings.bucket) is None or _is_configured(session):
        return None
    region = session.get_config_variable("region") or _GLOBAL
    if _REGION.fullmatch(region) is None:
        return None
    given = settings.endpoint_url
    if given is not None:
        if _ENDPOINT.fullmatch(given) is None or settings.addressing_style == "virtual":
            return None
        return Address(given, f"{given}/{settings.bucket}/", region)
    if settings.addressing_style == "path":
        return None
    host = "s3.amazonaws.com" if region == _GLOBAL else f"s3.{region}.amazonaws.com"
    return Address(f"https://{host}", f"https://{settings.bucket}.{host}/", region)


def address_of(client: Any, bucket: str) -> Address:
    """As botocore's client has it: presigning is the public way to ask."""
    signed = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "x"})
    url, _, query = signed.partition("?")
    region = parse_qs(query)["X-Amz-Credential"][0].split("/")[2]
    return Address(client.meta.endpoint_url, url[:-1], region)


def is_aws(endpoint: str) -> bool:
    return (urlsplit(endpoint).hostname or "").endswith(_AWS)


def _is_configured(session: Any) -> bool:
    if any(name.startswith(_VARIABLES) for name in os.environ):
        return True
    return not _ENTRIES.isdisjoint(session.get_scoped_config())
