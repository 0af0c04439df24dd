"""Keys of rows: numbers in [0, 1), made of what a row holds and of a seed."""

import torch

from skood.data.arrays import feature_batch_rows
from skood.data.hashing import GOLDEN, hash_of_text, mixed, signed, uniform

# What is hashed at a time, so that temporaries stay in the processor's cache.
SLICE_BYTES = 2**20


def row_keys(batch, seed=0):
    """Return a uniform random number for each row, made of what the row holds.

    Equal rows have equal keys, in whatever batches, order and floating dtype they come.

    Parameters
    ----------
    batch : Tensor of shape (n_samples, ...) or dict of Tensor
        The rows.
    seed : int, default=0
        Another one gives other keys.

    Returns
    -------
    keys : Tensor of shape (n_samples,), dtype float64
        In [0, 1).
    """
    return uniform(mixed(_hashes(batch) + signed(seed * GOLDEN)))


def entry_keys(keys, n_entries):
    """Return keys for so many entries of each row, from those of the rows."""
    return uniform(mixed(keys.view(torch.int64)[:, None] + _coefficients(n_entries, keys.device)))


def _hashes(batch):
    """Return a 64-bit hash of each row."""
    if isinstance(batch, dict):
        return sum(mixed(_hashes(part) + hash_of_text(name)) for name, part in batch.items())
    rows = batch.flatten(1) if batch.ndim > 1 else batch[:, None]
    coefficients = _coefficients(rows.shape[1], rows.device)
    sums = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    size = feature_batch_rows(8 * rows.shape[1], SLICE_BYTES)
    for out, block in zip(sums.split(size), rows.split(size), strict=True):
        out.copy_(_weighted_sums(block, coefficients))
    return sums


def _weighted_sums(rows, coefficients):
    """Return the multilinear hash of rows modulo 2⁶⁴, which does not depend on their dtype."""
    if not rows.is_floating_point():
        return (rows.long() * coefficients).sum(1)
    # The sum turns -0 into 0.
    rows, largest = rows + 0.0, torch.finfo(torch.float32).max
    single = rows.clamp(-largest, largest).float() if rows.dtype == torch.float64 else rows.float()
    sums = (single.view(torch.int32) * coefficients).sum(1)
    if rows.dtype == torch.float64:
        # What float32 does not hold; 0 where rows are float32's, which then hash alike.
        sums += ((rows - single).view(torch.int64) * mixed(coefficients)).sum(1)
    return sums


def _coefficients(n, device):
    """Return n odd numbers without a pattern."""
    return mixed(torch.arange(1, n + 1, device=device) * GOLDEN) | 1


def key_seed(scorer, random_state):
    """Return the seed of the rows' keys, of `random_state` if a scorer draws by them."""
    return random_state.randint(2**31 - 1) if getattr(scorer, "samples_by_key", False) else 0
