"""Methods on gradients."""
