"""The largest inner products of rows with a bank of rows: exact, in tiles, or by faiss."""

import numpy as np
import torch
from torch.backends import mkldnn
from torch.nn.functional import linear, pad

# Inner products are taken in tiles of at most this many queries and bank rows: 4 MiB of float32.
TILE = 1024


def inner_products(queries, rows):
    """Return the inner product of each query with each row."""
    if (queries.device.type, queries.dtype) == ("cpu", torch.float32) and mkldnn.is_available():
        # torch multiplies float32 by MKL, which takes twice as long on AMD's processors.
        return linear(queries.to_mkldnn(), rows.to_mkldnn()).to_dense()
    return queries @ rows.T


def mean_of_largest(queries, bank, k, own=None):
    """Mean of the k largest inner products of each query with the bank, by exact search in tiles.

    A tile's columns fall into groups. The k largest products lie within the k groups of the
    largest maxima, and only groups whose maximum exceeds the k-th best so far matter.

    Parameters
    ----------
    queries : Tensor of shape (n_samples, D)
        Rows.
    bank : Tensor of shape (n_bank, D)
        Rows, best in random order: sorted by class, later rows keep exceeding earlier ones.
    k : int
        At most n_bank, less one with `own`.
    own : Tensor of shape (n_samples,), dtype int64, default=None
        The bank row to leave out for each query; -1 for none.

    Returns
    -------
    mean : Tensor of shape (n_samples,), dtype float64
        The guidance.
    """
    means = torch.empty(len(queries), dtype=torch.float64, device=queries.device)
    group_size = 16 if k <= 32 else 8
    # The k best of a block of queries are no larger than a tile.
    n_queries = max(1, TILE * TILE // max(k, TILE))
    for start in range(0, len(queries), n_queries):
        block = queries[start : start + n_queries]
        best = block.new_full((len(block), k), -torch.inf)
        for first in range(0, len(bank), TILE):
            tile = inner_products(block, bank[first : first + TILE])
            if own is not None:
                column = own[start : start + n_queries] - first
                row = ((column >= 0) & (column < tile.shape[1])).nonzero().squeeze(1)
                tile[row, column[row]] = -torch.inf
            if tile.shape[1] % group_size:
                tile = pad(tile, (0, -tile.shape[1] % group_size), value=-torch.inf)
            # Columns j, j + n, j + 2n, ... are a group: maxima over an outer axis are faster.
            tile = tile.view(len(block), group_size, -1)
            maxima = tile.amax(1)
            n_better = (maxima > best.amin(1, keepdim=True)).sum(1)
            rows = n_better.nonzero().squeeze(1)
            if len(rows):
                n_groups = min(k, int(n_better.max()))
                groups = maxima[rows].topk(n_groups, sorted=False).indices
                candidates = tile[rows.unsqueeze(1), :, groups].flatten(1)
                best[rows] = torch.cat([best[rows], candidates], 1).topk(k, sorted=False).values
        means[start : start + n_queries] = best.mean(1, dtype=torch.float64)
    return means


def import_faiss():
    """Return faiss, which is optional."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            'An index other than "exact" needs faiss: pip install faiss-cpu'
        ) from error
    return faiss


def build_index(bank, description):
    """Return a faiss index of the bank's rows, written out as bytes."""
    faiss = import_faiss()
    rows = np.ascontiguousarray(bank.float().cpu().numpy())
    try:
        index = faiss.index_factory(rows.shape[1], description, faiss.METRIC_INNER_PRODUCT)
        inverted = faiss.try_extract_index_ivf(index)
        if inverted is not None:
            # faiss would look into one list only, and find .2 to .8 of the neighbours.
            inverted.nprobe = max(8, inverted.nlist // 32)
        index.train(rows)
        index.add(rows)
    except RuntimeError as error:
        raise ValueError(
            f"faiss cannot build index={description!r} of {len(rows)} rows of {rows.shape[1]} "
            f"features: {error}"
        ) from error
    return torch.from_numpy(faiss.serialize_index(index))


def mean_of_found(queries, index, k, own):
    """Like `mean_of_largest`, by a faiss index: mean over what it finds, 0 where that is nothing.

    Its k + 1 best less the own row, or less the last where it misses the own row.
    """
    n_largest = k + int((own >= 0).any())
    rows = np.ascontiguousarray(queries.float().cpu().numpy())
    products, found = map(torch.from_numpy, index.search(rows, n_largest))
    # faiss fills up with -1.
    others = (found >= 0) & (found != own.cpu().unsqueeze(1))
    others &= others.cumsum(1) <= k
    total = products.double().where(others, 0).sum(1)
    return (total / others.sum(1).clamp(min=1)).to(queries.device)
