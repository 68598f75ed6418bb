"""`python -m castore.mount`: the process of a mount, which `castore.mount.mount` begins."""

import sys

from castore.mount.process import main

sys.exit(main())
