"""Watching a detector in service."""

from skood.decisions.monitor import Monitor
from skood.decisions.watched import MonitorReport

__all__ = [
    "Monitor",
    "MonitorReport",
]
