"""Bytes in and out, whatever the kind of store: what a kind supplies, and what is built on it."""
