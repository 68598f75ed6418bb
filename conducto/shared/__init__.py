"""What pipelines use of the former Conducto's `conducto.shared`."""

from __future__ import annotations

from conducto.shared import log

__all__ = ["log"]
