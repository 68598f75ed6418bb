"""What a program of the tests begins with, where deltas are forced in it: see `forced_deltas`."""

import os
import sys

if os.environ.get("CASTORE_TESTS_FORCE_DELTAS"):
    support = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    root = os.path.dirname(os.path.dirname(support))
    sys.path[:0] = [support, root]
    import forced_deltas

    del sys.path[:2]
    forced_deltas.force_for_good()
