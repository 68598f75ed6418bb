"""What a store's URL, or path, means."""

from __future__ import annotations

import os
import re

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_USER = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*:/*)[^\s'\"]*@")
_QUERY = re.compile(r"\?[^\s'\"?]*=[^\s'\"]*")


def text_of(path: str | os.PathLike[str], what: str = "a path") -> str:
    """The path as it is written. Raises TypeError for one of bytes, as `os.fsencode` makes it."""
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"{what} is a str, not {type(text).__name__}")
    return text


def local_folder(url: str) -> str | None:
    """The folder that a store's URL or path names, a leading `~` expanded; None if it is on S3.
    Raises ValueError for what names neither."""
    if not url:
        raise ValueError("a store's path must not be empty")
    match = _SCHEME.match(url)
    scheme, is_url = (match[1].lower(), bool(match[2])) if match else ("", False)
    if scheme == "file":
        return _folder_of_url(url, url[5:])
    if scheme == "s3":
        if url.startswith("s3://"):
            return None
        raise ValueError(
            f"{redacted(url)!r} is no store's URL: use s3://bucket/prefix (or ./{scheme}:... for a "
            "folder of that name)"
        )
    if is_url:
        raise ValueError(f"{scheme}:// is not a kind of store: use s3://bucket/prefix or a path")
    return _checked(expand_home(url))


def expand_home(path: str) -> str:
    """`~/x` and `~user/x` as the shell has them; any other path as it is. Raises ValueError where
    there is no such home: the path would lie below a folder that is named `~`."""
    if not path.startswith("~"):
        return path
    user = path.partition("/")[0]
    expanded = os.path.expanduser(path)
    if not os.path.isabs(expanded) or (user == "~" and os.environ.get("HOME") == ""):
        whose = "this user has no home folder: set HOME" if user == "~" else f"no user {user[1:]!r}"
        raise ValueError(f"{path!r}: {whose}, or write ./{path} for a folder of that name")
    return expanded


def redacted(text: str) -> str:
    """A URL, or words that may hold some, fit to be shown: keys and passwords before an `@` are
    left out, and what a query says. A secret key may have any `/` in it."""
    return _QUERY.sub("?...", _USER.sub(r"\1...@", text))


def _folder_of_url(url: str, rest: str) -> str:
    """RFC 8089: `file:///path`, `file:/path`, `file://localhost/path`, with %-escapes."""
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        rest = slash + path
        if not host and not rest:
            raise ValueError("a store's path must not be empty")
        if host.lower() not in ("", "localhost"):
            raise ValueError(f"{redacted(url)!r} names another machine: use file:///absolute/path")
    if not rest.startswith("/"):
        raise ValueError(
            f"{redacted(url)!r} names no absolute path: use file:///absolute/path, or a path"
        )
    if "?" in rest or "#" in rest:
        raise ValueError(
            f"{redacted(url)!r}: a folder takes no settings; write %3F for '?' and %23 for '#'"
        )
    from urllib.parse import unquote_to_bytes  # most stores are named by a path

    return _checked(os.fsdecode(unquote_to_bytes(os.fsencode(rest))))


def _checked(path: str) -> str:
    if "\0" in path:
        raise ValueError(f"a store's path has an embedded null: {path!r}")
    return path
