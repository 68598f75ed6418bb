"""The journal of a local store against its index."""

from __future__ import annotations

import contextlib

from castore.check.findings import Findings
from castore.check.report import Problem, Severity
from castore.errors import FormatError
from castore.index import Index
from castore.journal_state import judge


def check_journal(root: str, index: Index, findings: Findings) -> None:
    """What a commit that was cut off left in the journal is nothing to tell of; what is missing
    from it is, and what is missing from the index."""
    with contextlib.suppress(FormatError):  # of a row of `meta`, which has a finding of its own
        state = judge(root, index)
        if state.refusal:
            severity: Severity = (
                "warning" if state.unclaimed and state.unclaimed.chunks else "missing"
            )
            findings.add(Problem("journal", severity, state.refusal))
        if state.gaps:
            what = f"the journal of names has a gap ({state.gaps[0]}): the next gc writes it anew"
            findings.add(Problem("journal", "warning", what))
