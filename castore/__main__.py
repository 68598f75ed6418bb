"""`python -m castore`: the same as the `castore` command."""

from __future__ import annotations

import sys

from castore.cli import main

if __name__ == "__main__":
    sys.exit(main())
