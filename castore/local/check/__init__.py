"""Checking a local store, and mending one that is not whole: see `run` and `repair`."""
