"""Collecting a store on S3: see `collect`."""
