"""The names of a store on S3, whatever object their manifests are in; see `look`."""

from castore.s3.namespace.listing import NUMBER_MAX
from castore.s3.namespace.look import Singles, etag_in_batch
from castore.s3.namespace.writing import (
    BATCH_BYTES_MAX,
    BATCH_NAMES_MAX,
    MakeBody,
    Namespace,
    ToPut,
)

__all__ = [
    "BATCH_BYTES_MAX",
    "BATCH_NAMES_MAX",
    "NUMBER_MAX",
    "MakeBody",
    "Namespace",
    "Singles",
    "ToPut",
    "etag_in_batch",
]
