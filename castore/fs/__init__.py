"""castore for fsspec, and so for pandas, pyarrow, dask, zarr and whatever else takes its URLs.

    fs = fsspec.filesystem("castore", store="/path/to/store")
    fsspec.open("castore://tables/day.parquet", store="/path/to/store")
    fsspec.open("castore://tables/day.parquet::file:///path/to/store")
    fsspec.open("castore://%2Fpath%2Fto%2Fstore@/tables/day.parquet")  # see `castore.fs.locations`
    fs = fsspec.filesystem("castore", store="s3://bucket/prefix?region=eu-west-1")

Without a `store`, $CASTORE_STORE names it. Paths are object names, a leading '/' is dropped; one
that is there is itself, and only what is not is taken for a pattern (`*?[`). Folders are implied by
'/': `mkdir` has nothing to do, and an empty folder is none. The store is
opened when it is first needed, and made only by a write. A write is published when its file is
closed, or all of a `with fs.transaction` at its end, with what is copied, moved and removed in it;
one that raises in its `with` publishes nothing. On S3, what is one commit here goes name by name,
many at once. A store opened here stays open, as fsspec keeps and shares its instances: where
somebody closes it, the next use opens it again.
"""

from __future__ import annotations

from castore.errors import needs_installed

with needs_installed("fsspec", "castore[fsspec]"):
    from castore.fs.contents import ContentVerbs
    from castore.fs.listing import ListingVerbs
    from castore.fs.transfers import TransferVerbs

__all__ = ["CastoreFileSystem"]


class CastoreFileSystem(ListingVerbs, ContentVerbs, TransferVerbs):
    """A castore store as an fsspec file system; see the module for paths and URLs.

    `store` is a path or a URL, and made absolute at once; without one, $CASTORE_STORE is. The other
    options are those of `castore.open` and of fsspec itself; with `asynchronous` the answer is an
    `AsyncCastoreFileSystem` over one of these. With `use_listings_cache` an object that a listing
    showed is not asked for again for `listings_expiry_time` seconds, of at most `max_paths` names
    (None: until `invalidate_cache`; 100,000). Raises ValueError for a store that can't be one,
    TypeError for options that nobody knows.

    >>> fs = castore.fs.CastoreFileSystem("store")
    >>> with fs.open("tables/a", "wb") as file:
    ...     file.write(b"12345")
    5
    >>> fs.cat_file("tables/a", start=1, end=3)
    b'23'
    >>> fs.ls("tables", detail=False)
    ['tables/a']
    >>> fs.store.close()
    """
