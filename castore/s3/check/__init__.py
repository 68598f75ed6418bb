"""Checking a store on S3, and repairing one that is not whole."""
