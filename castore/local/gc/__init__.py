"""Collecting a local store: see `collect`."""
