"""The requests that a store lives on, as they are on the wire: asked for and understood past
botocore's client.

To make the client takes 80 ms of CPU, and each of its requests 1.2 where these take 0.6: so only
what is rare goes through it. Names and shapes are the client's: parameters and answers are
dictionaries as its methods have them, with the fields that castore has a use for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from castore.s3.client.body import Buffers, checksum_header
from castore.s3.client.faults import Broken, Refused
from castore.s3.client.listed_page import parsed_page, query_of

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
    """A request; `key` is "" for one to the bucket. `understood` makes the client's answer of the
    reply, and raises Refused, Broken, ValueError."""

    method: str
    key: str
    query: str
    headers: dict[str, str]
    body: bytes | Buffers
    understood: Callable[[Answer], dict[str, Any]]


def plain_request(
    operation: str, parameters: Mapping[str, Any], upload_checksum: str
) -> Plain | None:
    """The request that the client's method of this name would make with these parameters; None for
    one that is left to the client. What is written has a checksum of this kind: see `body`."""
    given = dict(parameters)
    match operation:
        case "list_objects_v2":
            return Plain("GET", "", query_of(given), {}, b"", _listed)
        case "head_object":
            return Plain("HEAD", given.pop("Key"), "", _named(given), b"", _head)
        case "put_object":
            key, body = given.pop("Key"), given.pop("Body")
            headers = _named(given | checksum_header(upload_checksum, body))
            return Plain("PUT", key, "", headers, body, _nothing)
        case "delete_object":
            return Plain("DELETE", given.pop("Key"), "", _named(given), b"", _nothing)
        case "delete_objects":
            body = _doomed(given.pop("Delete")["Objects"])
            kind = "crc32" if upload_checksum == "crc32" else "md5"  # S3 demands one of them
            headers = _named(given | checksum_header(kind, body))
            return Plain("POST", "", "delete", headers, body, _deleted)
    return None


def _named(parameters: Mapping[str, str]) -> dict[str, str]:
    return {_HEADERS[name]: value for name, value in parameters.items()}


def _listed(answer: Answer) -> dict[str, Any]:
    return parsed_page(answer.body)


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
    """Raises Broken for what is no XML, and Refused for an error that came as a success: S3 begins
    to answer before it has finished."""
    try:
        root = ElementTree.fromstring(answer.body)
    except ElementTree.ParseError as error:
        raise Broken(f"the reply can't be understood: {error}") from error
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
    root = _root(answer)
    found: dict[str, Any] = {"Deleted": [], "Errors": []}
    into = {"Deleted": found["Deleted"], "Error": found["Errors"]}
    for child in root:
        entries = into.get(_local(child))
        if entries is not None:
            entries.append({_local(field): field.text or "" for field in child})
    return found


def _local(element: ElementTree.Element) -> str:
    """Its name without the namespace."""
    return element.tag[element.tag.find("}") + 1 :]
