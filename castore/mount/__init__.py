"""A store, or what is below some of its names, as a folder: `castore mount`.

`tree` has what is answered, and knows no kernel; `fuse` hands it to libfuse 3, by mfusepy (the
extra `castore[mount]`). A mount is served by a process of its own, never by one that also uses it:
a page that a process waits for could not be read while it waits.

    with castore.mount.mounted("/data/store", "/mnt/store") as folder:
        pandas.read_parquet(f"{folder}/tables/day.parquet")
"""

from __future__ import annotations

from castore.mount.process import MountUnavailable, mount, mounted, serve, unavailable, unmount

__all__ = ["MountUnavailable", "mount", "mounted", "serve", "unavailable", "unmount"]
