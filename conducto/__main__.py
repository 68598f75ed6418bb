"""`python -m conducto`: the command `conducto`."""

from __future__ import annotations

import sys

from conducto.command import main

if __name__ == "__main__":
    sys.exit(main())
