"""Every change of a name, in a file beside the index, so that names outlive it: see `log`."""
