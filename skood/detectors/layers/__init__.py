"""Methods on several layers."""
