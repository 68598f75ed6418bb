"""Requests to a bucket: the only place that knows botocore."""
