"""What a server must honour before anything is condemned on it."""

from __future__ import annotations

from castore.errors import CollectionRefused, PreconditionsIgnored
from castore.s3.client.bucket import Bucket
from castore.s3.client.probe import ServerFeatures, probe


def fit_server(bucket: Bucket, *, alone: bool) -> ServerFeatures:
    """What it honours. Raises CollectionRefused where that is not enough to condemn anything."""
    url = bucket.settings.url
    features = probe(bucket)
    if not features.list_consistent:
        raise CollectionRefused(f"{url}: a listing there does not show what there is")
    if not features.ranges:
        raise CollectionRefused(f"{url}: the server ignores Range")
    if not alone:
        for honoured, header in (
            (features.if_none_match, "If-None-Match"),
            (features.if_match_put, "If-Match"),
        ):
            if not honoured:
                raise PreconditionsIgnored(url, header)
    return features
