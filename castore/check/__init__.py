"""Whether a store is whole, and mending one that is not.

`report` has the answer's values; `packs` reads packs, `objects` manifests against them, `data`
decodes frames; `look` and `remote` walk each kind of store; `repair` and `repair_remote` mend them.
"""

from __future__ import annotations

from castore.check.report import CheckReport, Problem

__all__ = ["CheckReport", "Problem"]
