"""The layers of one store on S3, as what is done to all of it takes them."""

from __future__ import annotations

from dataclasses import dataclass

from castore.format.config import StoreConfig
from castore.s3.cache.store import StoreCache
from castore.s3.catalog import S3Catalog
from castore.s3.client.bucket import Bucket
from castore.s3.hints import Hints
from castore.s3.namespace.writing import Namespace
from castore.s3.packs import S3Packs
from castore.system.workers import Workers


@dataclass(frozen=True, slots=True)
class Parts:
    """`requests` are the threads that wait for the server."""

    bucket: Bucket
    config: StoreConfig
    cache: StoreCache
    names: Namespace
    catalog: S3Catalog
    packs: S3Packs
    hints: Hints
    requests: Workers
