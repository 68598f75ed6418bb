"""The requests that a store lives on, as they are on the wire: asked for and understood past
botocore's client.

To make the client takes 80 ms of CPU, and each of its requests 1.2 where these take 0.6; a page of
1,000 keys takes its parser 119, and this one 17. So only what is rare goes through it. Names and
shapes are the client's: parameters and answers are dictionaries as its methods have them, with the
fields that castore has a use for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_plus
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from castore.s3.client.faults import Broken, Refused

_QUERY = {
    "ContinuationToken": "continuation-token",
    "Delimiter": "delimiter",
    "MaxKeys": "max-keys",
    "Prefix": "prefix",
    "StartAfter": "start-after",
}
CRC32 = "x-amz-checksum-crc32"
_HEADERS = {
    "ChecksumCRC32": CRC32,
    "ContentMD5": "Content-MD5",
    "IfMatch": "If-Match",
    "IfNoneMatch": "If-None-Match",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "StorageClass": "x-amz-storage-class",
}


class Answer(NamedTuple):
    """A reply, whole. `headers` are looked up in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Plain(NamedTuple):
    """A request; `key` is "" for one to the bucket; `body` is bytes, or a file. `understood` makes
    the client's answer of the reply, and raises Refused, Broken, ValueError."""

    method: str
    key: str
    query: str
    headers: dict[str, str]
    body: Any
    understood: Callable[[Answer], dict[str, Any]]


def plain_request(
    operation: str, parameters: Mapping[str, Any], checksum: Callable[[Any], Mapping[str, str]]
) -> Plain | None:
    """The request that the client's method of this name would make with these parameters; None for
    one that is left to the client. `checksum` gives the parameter that has the one of a body."""
    given = dict(parameters)
    match operation:
        case "list_objects_v2":
            return Plain("GET", "", _query_of(given), {}, b"", _page)
        case "head_object":
            return Plain("HEAD", given.pop("Key"), "", _named(given), b"", _head)
        case "put_object":
            key, body = given.pop("Key"), given.pop("Body")
            return Plain("PUT", key, "", _named({**given, **checksum(body)}), body, _nothing)
        case "delete_object":
            key, version = given.pop("Key"), given.pop("VersionId", None)
            query = "" if version is None else f"versionId={quote(version, safe='-._~')}"
            return Plain("DELETE", key, query, _named(given), b"", _nothing)
        case "delete_objects":
            body = _doomed(given.pop("Delete")["Objects"])
            return Plain("POST", "", "delete", _named(checksum(body)), body, _deleted)
    return None


def _named(parameters: Mapping[str, str]) -> dict[str, str]:
    return {_HEADERS[name]: value for name, value in parameters.items()}


def _head(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = {"ETag": answer.headers.get("etag")}
    size = answer.headers.get("content-length")
    if size is not None:
        found["ContentLength"] = int(size)
    return found


def _nothing(answer: Answer) -> dict[str, Any]:
    """Of a reply that has no body, or one that says no more than its head."""
    if answer.body:
        _root(answer)
    return {"ETag": answer.headers.get("etag")}


def _root(answer: Answer) -> ElementTree.Element:
    """Raises Broken for what is no XML, or a web page, and Refused for an error that came as a
    success: S3 begins to answer before it has finished."""
    try:
        root = ElementTree.fromstring(answer.body)
    except (ElementTree.ParseError, LookupError) as error:  # or in an encoding that is none
        raise Broken(f"the reply can't be understood: {error}") from error
    if _local(root).lower() == "html":  # something in between wants a login, say
        raise Broken("the reply is a web page")
    if _local(root) == "Error":
        said = {_local(field): field.text or "" for field in root}
        raise Refused(500, said.get("Code", ""), said.get("Message", ""), answer.headers)
    return root


# ---- deletions of many ---------------------------------------------------------------------------


def _doomed(objects: list[dict[str, str]]) -> bytes:
    entries = (
        "".join(f"<{name}>{escape(value)}</{name}>" for name, value in each.items())
        for each in objects
    )
    listed = "".join(f"<Object>{entry}</Object>" for entry in entries)
    return f'<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{listed}</Delete>'.encode()


def _deleted(answer: Answer) -> dict[str, Any]:
    """Raises ValueError for an entry that does not say of what it is."""
    root = _root(answer)
    found: dict[str, Any] = {"Deleted": [], "Errors": []}
    into = {"Deleted": found["Deleted"], "Error": found["Errors"]}
    for child in root:
        entries = into.get(_local(child))
        if entries is not None:
            entry = {_local(field): field.text or "" for field in child}
            if "Key" not in entry:
                raise ValueError(f"of which key? {entry}")
            entries.append(entry)
    return found


def _local(element: ElementTree.Element) -> str:
    """Its name without the namespace."""
    return element.tag[element.tag.find("}") + 1 :]


# ---- lists ---------------------------------------------------------------------------------------


def _query_of(parameters: Mapping[str, Any]) -> str:
    asked = {_QUERY[name]: str(value) for name, value in parameters.items()}
    asked |= {"encoding-type": "url", "list-type": "2"}  # a key may have what XML can't
    return "&".join(f"{name}={quote(asked[name], safe='-._~')}" for name in sorted(asked))


def _page(answer: Answer) -> dict[str, Any]:
    """What is not there is left out."""
    root = _root(answer)
    start = root.tag.find("}") + 1  # of a name, behind its namespace
    page: dict[str, Any] = {"Contents": [], "CommonPrefixes": []}
    plain = _decoder(root.findtext(f"{root.tag[:start]}EncodingType"))
    for child in root:
        match child.tag[start:]:
            case "Contents":
                fields = {field.tag[start:]: field.text or "" for field in child}
                page["Contents"].append(_entry(fields, plain))
            case "CommonPrefixes":
                for field in child:
                    if field.tag[start:] == "Prefix":
                        page["CommonPrefixes"].append({"Prefix": plain(field.text or "")})
            case "IsTruncated":
                page["IsTruncated"] = {"true": True, "false": False}.get(child.text or "")
            case "NextContinuationToken":
                page["NextContinuationToken"] = child.text or ""
    return page


def _decoder(encoding: str | None) -> Callable[[str], str]:
    """For keys: a server that was asked to encode them need not."""
    return unquote_plus if encoding == "url" else str


def _entry(fields: Mapping[str, str], plain: Callable[[str], str]) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    if "Key" in fields:
        entry["Key"] = plain(fields["Key"])
    if "ETag" in fields:
        entry["ETag"] = fields["ETag"]
    if "Size" in fields:
        entry["Size"] = int(fields["Size"])
    if "LastModified" in fields:
        entry["LastModified"] = _time(fields["LastModified"])
    return entry


def _time(text: str) -> datetime:
    """Raises ValueError."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(f"a time without a zone: {text!r}")
    return at
