"""A detector on test rows, on one page."""

from skood.decisions.report import Report

__all__ = [
    "Report",
]
