"""Methods on features."""
