"""What a server must honour before anything is condemned on it."""

from __future__ import annotations

from castore.errors import CollectionRefused, PreconditionsIgnored
from castore.s3.client.bucket import Bucket
from castore.s3.client.probe import IGNORED, RACES_AGAIN, ServerFeatures, probe


def fit_server(bucket: Bucket, *, alone: bool) -> ServerFeatures:
    """What it honours. Raises CollectionRefused where that is not enough to condemn anything."""
    features = probe(bucket)
    if _unfit(bucket, features, alone) is not None:
        # One answer may have been of the moment. Several puts at once are tried more often than
        # before: a server that lets more than one of them win now and then is to be caught at it.
        features = probe(bucket, races=RACES_AGAIN)
        refusal = _unfit(bucket, features, alone)
        if refusal is not None:
            raise refusal
    return features


def _unfit(bucket: Bucket, features: ServerFeatures, alone: bool) -> CollectionRefused | None:
    """Why nothing may be condemned on a server that honours no more than this; None if it may."""
    url = bucket.settings.url
    if not features.list_consistent:
        return CollectionRefused(f"{url}: a listing there does not show what there is")
    if not features.ranges:
        return CollectionRefused(f"{url}: the server ignores Range")
    if alone:
        return None
    for feature, header in (("if_none_match", "If-None-Match"), ("if_match_put", "If-Match")):
        if not getattr(features, feature):
            return PreconditionsIgnored(url, header, features.instead.get(feature, IGNORED))
    return None
