"""Data for pipelines, by name: `import conducto as co`, then `co.data.pipeline` and
`co.data.user`.

`co.data.pipeline` belongs to one pipeline and goes when that is archived; `co.data.user` belongs
to the user and stays. Both keep their objects in one castore store per user, so the same bytes
are stored once whichever pipeline they came from.
"""

from __future__ import annotations

from conducto import data
from conducto.data import pipeline as temp_data
from conducto.data import user as perm_data
from conducto.errors import ContextError

__all__ = ["ContextError", "data", "perm_data", "temp_data"]
