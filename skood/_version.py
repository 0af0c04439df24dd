"""The version of skood."""

__version__ = "0.1.0"
