"""What the rest stands on: files, mappings, processes, threads, LMDB. Nothing here knows chunks."""
