"""Lengths of rows."""

import torch


def lengths(rows, order=2.0):
    """Return the norm of each row (n_samples, D), in float64; its square may overflow."""
    is_double, rows = rows.dtype == torch.float64, rows.double()
    if order == 2 and not is_double:
        # Squares of float32 neither overflow float64 nor underflow.
        return torch.linalg.vector_norm(rows, dim=1)
    size = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    return size[:, 0] * torch.linalg.vector_norm(rows / size, ord=order, dim=1)
