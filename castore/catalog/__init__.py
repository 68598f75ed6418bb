"""Names to manifests, and the commit: `local` keeps them in LMDB, which is the truth."""
