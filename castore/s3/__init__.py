"""A bucket as castore uses it: settings, requests with a known outcome, and what a server honours.

botocore is imported in this package alone, and only when a Bucket is first used.
"""
