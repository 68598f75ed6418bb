"""Checking a store on S3, and mending one that is not whole: see `check` and `repair`."""
