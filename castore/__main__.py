"""`python -m castore`: the same as the `castore` command."""

from __future__ import annotations

import os
import sys


def _leave_current_folder() -> None:
    """Python looks for modules in the current folder first, and who may write there is not to have
    code of theirs run by this command. Unless castore itself comes from there."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    first = sys.path[0]
    if sys.flags.safe_path or not os.path.isdir(first) or os.path.samefile(first, root):
        return
    if os.path.samefile(first, os.curdir):
        del sys.path[0]


if __name__ == "__main__":
    _leave_current_folder()
    from castore.cli import main

    sys.exit(main())
