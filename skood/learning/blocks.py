"""Scores of rows in blocks, which bound memory and stay in cache, or at once."""

import torch
from sklearn import get_config

# The memory that a block of rows takes in computations. On a CPU it stays in cache; a GPU computes
# a small block no faster than a large one: 50 Gaussians took 23 times their products in blocks of
# 16 MiB.
BLOCK_BYTES, GPU_BLOCK_BYTES = 16 * 2**20, 2**30


def takes_plain_path(*tensors):
    """Tell whether to compute by operations that torch can export, and differentiate.

    Others write in place, or branch on data: they take less time or memory.
    """
    if torch.compiler.is_exporting():
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def block_rows(row_bytes, device, cache_bytes=BLOCK_BYTES):
    """Return how many rows to compute at once on a device, where each takes so many bytes."""
    n_bytes = cache_bytes if device.type == "cpu" else GPU_BLOCK_BYTES
    return max(1, int(min(n_bytes, get_config()["working_memory"] * 2**20) // row_bytes))


def score_in_blocks(score, row_bytes, *inputs):
    """Return the float64 scores of rows, computed in blocks; at once on the plain path.

    Parameters
    ----------
    score : callable
        Maps tensors of some rows to the scores of these.
    row_bytes : int
        The memory that it takes a row.
    *inputs : Tensor of shape (n_samples, ...)
        Its arguments, for all rows.
    """
    if takes_plain_path(*inputs):
        return score(*inputs)
    size = block_rows(row_bytes, inputs[0].device)
    scores = torch.empty(len(inputs[0]), dtype=torch.float64, device=inputs[0].device)
    # Written in place: small results that are kept between large ones leave holes in memory.
    for part, *block in zip(scores.split(size), *(x.split(size) for x in inputs), strict=True):
        part.copy_(score(*block))
    return scores


def score_in_folds(score, folds, *inputs):
    """Return the float64 scores of rows, each by what the rows of other folds teach.

    Parameters
    ----------
    score : callable
        Maps a fold and tensors of its rows to the scores of these.
    folds : Tensor of shape (n_samples,)
        The fold of each row; see `skood.learning.moments.FoldMoments`.
    *inputs : Tensor of shape (n_samples, ...)
        Its arguments, for all rows.
    """
    scores = None
    for fold in folds.unique().tolist():
        chosen = folds == fold
        of_fold = score(fold, *(x[chosen] for x in inputs)).double()
        if scores is None:
            scores = of_fold.new_empty(len(folds), *of_fold.shape[1:])
        scores[chosen] = of_fold
    return scores
