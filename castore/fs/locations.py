"""Where a URL of `castore://` says that its store is.

    castore://tables/day.parquet                           of the store that $CASTORE_STORE names
    castore://%2Fdata%2Fstore@/tables/day.parquet          of /data/store
    castore://s3%3A%2F%2Fbucket%2Fprefix@/tables/day.parquet
    castore://tables/day.parquet::file:///data/store       chained, as fsspec has it
    castore://tables/day.parquet::castore+s3://bucket/prefix
    castore://tables/day.parquet::s3://bucket/prefix       the same, where s3fs is installed

The second form is one plain URL, `quote(store, safe="") + "@/" + name`, for those that take no
storage options and split no chains: nothing in it but '://' and '/' means anything to them. The
name is not quoted. A name whose own first part has a %2F and ends with '@' follows three slashes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote, unquote

STORE_LINK = "castore+s3"  # see castore.fs.links


def split_store(path: str) -> tuple[str | None, str]:
    """(the store, or None, and the name) of what follows `castore://`."""
    first, _, name = path.partition("/")
    if first.endswith("@") and "%2f" in first.lower():
        return unquote(first[:-1], errors="strict"), name
    return None, path


def url_with_store(protocol: str, store: str, name: str) -> str:
    """The URL of a name that says which store it is in; `store` is a whole path or URL."""
    return f"{protocol}://{quote(store, safe='')}@/{name}"


def chained_store(
    fo: str | None,
    target_protocol: str | None,
    target_options: Mapping[str, Any] | None,
    known: Collection[str],
) -> tuple[str | None, dict[str, Any]]:
    """(the store, its settings) that the right side of `::` gives, as fsspec hands it over.

    `known` are the settings that a store on S3 may have. Raises ValueError for what no store can be
    in, TypeError for settings that it has not.
    """
    options = dict(target_options or {})
    if target_protocol in (None, "file", "local"):
        if options:
            raise ValueError(f"a folder takes no settings, and not {', '.join(options)}")
        return fo, {}
    if target_protocol not in ("s3", STORE_LINK):
        raise ValueError(f"a castore store can't be opened through {target_protocol!r}")
    if not fo:
        raise ValueError("which bucket? Chain a store as ::s3://bucket/prefix")
    strangers = sorted(options.keys() - known)
    if strangers:
        raise TypeError(
            f"castore reads S3 itself, and has no setting {', '.join(strangers)}: there are "
            f"{', '.join(sorted(known))}"
        )
    return fo if fo.startswith("s3://") else f"s3://{fo}", options
