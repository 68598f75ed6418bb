"""Stores in a folder: names in LMDB, packs in files that are mapped."""
