"""Rows: arrays, streams and labels of any library."""
