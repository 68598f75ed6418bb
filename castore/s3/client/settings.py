"""Where an S3 store is and how to talk to it: from arguments, the URL's query, the environment.

What the AWS tools take from `~/.aws` and `AWS_PROFILE` (keys, a region, an endpoint) is left to
botocore, so that it means here what it means to them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from castore.urls import redacted

PREFIX_BYTES_MAX = 480  # what S3's 1,024 bytes leave beside the longest name
CONCURRENCY_MAX = 1024
UPLOAD_CHECKSUMS = ("auto", "crc32", "md5", "none")

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_WORD = re.compile(r"[A-Za-z0-9_./:-]+")
_STORAGE_CLASS = re.compile(r"[A-Z0-9_]+")
# These must be restored before they can be read.
_ARCHIVED = ("GLACIER", "DEEP_ARCHIVE")

# Beside CASTORE_S3_<FIELD>, which comes first.
_ENVIRONMENT = {
    "endpoint_url": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
}


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where a store is, and how to talk to its server: see `castore.open`."""

    bucket: str
    prefix: str = ""  # "" or "a/b"
    endpoint_url: str | None = None  # None: AWS, or what AWS's configuration says
    region: str | None = None
    profile: str | None = None
    addressing_style: str = "auto"  # path on custom endpoints, as AWS wants it on AWS
    sse: str | None = None
    sse_kms_key_id: str | None = None
    storage_class: str | None = None
    upload_checksum: str = "auto"  # md5 on custom endpoints, crc32 on AWS
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    max_concurrency: int = 16  # requests in flight at once, of one Bucket

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"

    def key(self, relative: str) -> str:
        """The key in the bucket of what is at `relative` in the store."""
        return f"{self.prefix}/{relative}" if self.prefix else relative


def parse_settings(url: str, **overrides: Any) -> S3Settings:
    """The settings for `s3://bucket/prefix?key=value`. `overrides` are fields of S3Settings, and
    come before the query, which comes before the environment; None means not given. The prefix is
    taken as it is written (no %-decoding), up to the first `?`."""
    bucket, prefix, query = _split(url)
    known = {field.name for field in fields(S3Settings)} - {"bucket", "prefix"}
    for name in overrides:
        if name not in known:
            raise TypeError(f"{name!r} is not a setting of an S3 store; these are: {_list(known)}")
    for name in query:  # it may be a secret: its value is not repeated
        if name not in known:
            raise ValueError(f"{name!r} is not a setting of an S3 URL; these are: {_list(known)}")
    values: dict[str, Any] = {}
    for name in known:
        given, source = _look_up(name, overrides, query)
        if given is not None:
            values[name] = _checked(name, given, source)
    if "sse_kms_key_id" in values and values.get("sse") != "aws:kms":
        raise ValueError("sse_kms_key_id needs sse='aws:kms'")
    return S3Settings(bucket, prefix, **values)


def settings_among(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options of `castore.open` that say how to talk to S3."""
    known = {field.name for field in fields(S3Settings)}
    return {name: value for name, value in options.items() if name in known}


def _split(url: str) -> tuple[str, str, dict[str, str]]:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme != "s3":
        raise ValueError(f"{redacted(url)!r} is not an S3 URL: s3://bucket/prefix")
    path, _, tail = rest.partition("?")
    bucket, _, prefix = path.partition("/")
    if _BUCKET.fullmatch(bucket) is None:
        if "@" in rest or ":" in bucket:  # what it says instead may be a secret: it is not repeated
            raise ValueError(
                "an S3 URL is s3://bucket/prefix and holds no credentials (put them in the "
                "environment or ~/.aws) and no port (endpoint_url=): this has not a bucket's name"
            )
        raise ValueError(f"{bucket!r} in {redacted(url)!r} is not a bucket's name")
    if bucket.endswith("--x-s3"):
        raise ValueError(
            f"{bucket!r} is a directory bucket, which lists keys in no order: use another"
        )
    return bucket, _checked_prefix(prefix, url), _parse_query(tail, url)


def _checked_prefix(prefix: str, url: str) -> str:
    prefix = prefix.strip("/")
    if not prefix:
        return ""
    if any(part in ("", ".", "..") for part in prefix.split("/")):
        raise ValueError(f"the prefix of {redacted(url)!r} has an empty, '.' or '..' component")
    try:
        size = len(prefix.encode())
    except UnicodeEncodeError:
        raise ValueError(f"the prefix of {redacted(url)!r} is not valid Unicode") from None
    if size > PREFIX_BYTES_MAX or "\0" in prefix:
        raise ValueError(
            f"the prefix of {redacted(url)!r} has a NUL, or more than {PREFIX_BYTES_MAX} bytes of "
            "UTF-8"
        )
    return prefix


def _parse_query(query: str, url: str) -> dict[str, str]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:
        raise ValueError(f"the query of {redacted(url)!r} is not of the form key=value&…") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} is twice in {redacted(url)!r}")
        if not value:
            raise ValueError(f"{name!r} is empty in {redacted(url)!r}")
        found[name] = value
    return found


def _look_up(name: str, overrides: Mapping[str, Any], query: Mapping[str, str]) -> tuple[Any, str]:
    """(value or None, where it is from)"""
    if overrides.get(name) is not None:
        return overrides[name], name
    if name in query:
        return query[name], f"{name} in the URL"
    for variable in (f"CASTORE_S3_{name.upper()}", *_ENVIRONMENT.get(name, ())):
        if os.environ.get(variable):
            return os.environ[variable], variable
    return None, ""


def _checked(name: str, value: Any, source: str) -> str | float | int:
    if name in ("connect_timeout_s", "read_timeout_s"):
        return _seconds(value, source)
    if name == "max_concurrency":
        return _count(value, source)
    if not isinstance(value, str):
        raise ValueError(f"{source} must be text, and is {value!r}")
    if name == "endpoint_url":
        return checked_endpoint(value, source)
    if name == "addressing_style" and value not in ("auto", "path", "virtual"):
        raise ValueError(f"{source} must be auto, path or virtual, and is {value!r}")
    if name == "upload_checksum" and value not in UPLOAD_CHECKSUMS:
        raise ValueError(f"{source} must be one of {', '.join(UPLOAD_CHECKSUMS)}, and is {value!r}")
    if name == "sse" and value not in ("AES256", "aws:kms"):
        raise ValueError(f"{source} must be AES256 or aws:kms, and is {value!r}")
    if name == "storage_class":
        if value in _ARCHIVED:
            raise ValueError(f"{source} is {value}, which can't be read back at once")
        if _STORAGE_CLASS.fullmatch(value) is None:
            raise ValueError(f"{source} is not a storage class: {value!r}")
    if name in ("region", "sse_kms_key_id") and _WORD.fullmatch(value) is None:
        raise ValueError(f"{source} is malformed: {value!r}")
    return value


def checked_endpoint(value: str, source: str) -> str:
    """The URL of a server. Raises ValueError, which does not repeat a password in it."""
    if "@" in value:
        raise ValueError(f"{source} holds credentials: put them in the environment or ~/.aws")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port  # the port is parsed, and may fail, only when asked
    except ValueError:
        raise ValueError(f"{source} is not a URL: {redacted(value)!r}") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ValueError(f"{source} must be http(s)://host[:port], and is {redacted(value)!r}")
    return value.rstrip("/")


def _seconds(value: Any, source: str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"{source} must be a number of seconds above 0, and is {value!r}")
    return seconds


def _count(value: Any, source: str) -> int:
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = 0
    if not 1 <= count <= CONCURRENCY_MAX or isinstance(value, (bool, float)):
        raise ValueError(f"{source} must be from 1 to {CONCURRENCY_MAX}, and is {value!r}")
    return count


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names))
