"""The largest inner products of rows with a bank of rows, by exact search in tiles."""

import platform
from functools import cache

import numpy as np
import torch
from torch.backends import mkldnn
from torch.nn.functional import linear, pad

from skood.learning.norms import lengths

# Inner products are taken in tiles of at most so many squared: 4 MiB of float32, which stay in a
# CPU's cache. A GPU would wait for the next tile: its tiles are larger.
TILE, GPU_TILE_ROWS, GPU_TILE_BYTES = 1024, 8 * 1024, 2**29
# Of so many columns of a tile the maximum tells whether they matter.
GROUP = 16
# So many more rows than k are found in float32, so that the last is well below the k-th.
SPARE = 6


def tile_shape(rows):
    """Return of how many rows and columns of their inner products a tile is."""
    if rows.device.type == "cpu":
        return TILE, TILE
    return GPU_TILE_ROWS, GPU_TILE_BYTES // (GPU_TILE_ROWS * rows.itemsize)


@cache
def is_intel():
    """Tell whether the processor is Intel's."""
    try:
        with open("/proc/cpuinfo") as file:
            return "GenuineIntel" in file.read()
    except OSError:
        return "GenuineIntel" in platform.processor()


def inner_products(queries, rows, memory=None):
    """Return the inner product of each query with each row, perhaps in memory for as many."""
    is_single = (queries.device.type, queries.dtype) == ("cpu", torch.float32)
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    if is_single and has_avx512 and not is_intel() and mkldnn.is_available():
        # torch multiplies float32 by MKL, which takes twice as long on AMD's processors with
        # AVX-512, .8 of the time on those without and on Intel's.
        return linear(queries.to_mkldnn(), rows.to_mkldnn()).to_dense()
    if memory is None:
        return queries @ rows.T
    size = len(queries) * len(rows)
    return torch.mm(queries, rows.T, out=memory[:size].view(len(queries), len(rows)))


def is_sorted_by_numpy(values):
    """Tell whether numpy sorts values, in a fifth of the time of torch's topk."""
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


def k_largest(values, k, columns=None):
    """Return the k largest of each row, and their columns; by numpy the least of them first.

    The rows may be changed.
    """
    if not is_sorted_by_numpy(values):
        largest, at = values.topk(k, sorted=False)
        return largest, None if columns is None else columns.gather(1, at)
    if columns is None:
        values.numpy().sort(axis=1)
        return values[:, -k:], None
    at = torch.from_numpy(np.argpartition(values.numpy(), -k, axis=1)[:, -k:])
    return values.gather(1, at), columns.gather(1, at)


def k_largest_of_groups(tile, k, with_columns):
    """Return the k largest of each row of a tile, and their columns, in any order.

    They lie in the k groups of the largest maxima. On a GPU `topk` of all columns takes six times
    as long.
    """
    if tile.shape[1] % GROUP or tile.shape[1] < 4 * GROUP * k:
        values, columns = tile.topk(min(k, tile.shape[1]), sorted=False)
        return values, columns if with_columns else None
    # Columns j, j + n, j + 2n, ... are a group.
    groups = tile.view(len(tile), GROUP, -1)
    largest = groups.amax(1).topk(k, sorted=False).indices[:, None].expand(-1, GROUP, -1)
    values, at = groups.gather(2, largest).flatten(1).topk(k, sorted=False)
    if not with_columns:
        return values, None
    first = torch.arange(0, tile.shape[1], groups.shape[2], device=tile.device)
    return values, (largest + first[:, None]).flatten(1).gather(1, at)


def exceeding(tile, least, with_columns):
    """Return what exceeds a least value in each row of a tile, filled up, and its columns."""
    if tile.shape[1] % GROUP:
        tile = pad(tile, (0, -tile.shape[1] % GROUP), value=-torch.inf)
    # Columns j, j + n, j + 2n, ... are a group: maxima over an outer axis are faster.
    groups = tile.view(len(tile), GROUP, -1)
    row, group = (groups.amax(1) > least).nonzero().T
    of_groups = groups[row, :, group]
    at, place = (of_groups > least[row]).nonzero().T
    row = row[at]
    counts = torch.bincount(row, minlength=len(tile))
    # The first of a row goes to its first column, ...
    to = row, torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    values = tile.new_full((len(tile), int(counts.max())), -torch.inf)
    values[to] = of_groups[at, place]
    if not with_columns:
        return values, None
    columns = torch.zeros_like(values, dtype=torch.int64)
    columns[to] = group[at] + groups.shape[2] * place
    return values, columns


def search(queries, bank, k, own=None, with_rows=False, memory=None):
    """Return the k largest inner products of queries with the bank (n_samples, k), and its rows.

    See `reduce_largest`, which gives as many queries as the tiles allow, and memory for a tile.
    """
    on_cpu = is_sorted_by_numpy(queries)
    first, n_columns = 0, max(k, tile_shape(queries)[1])
    best, found = queries.new_empty(len(queries), 0), None
    while first < len(bank):
        tile = inner_products(queries, bank[first : first + n_columns], memory)
        if own is not None:
            row = ((own >= first) & (own < first + tile.shape[1])).nonzero()[:, 0]
            tile[row, own[row] - first] = -torch.inf
        if on_cpu and first:
            values, columns = exceeding(tile, best[:, :1], with_rows)
        elif on_cpu:
            columns = torch.arange(tile.shape[1]).expand_as(tile) if with_rows else None
            values, columns = k_largest(tile, min(k, tile.shape[1]), columns)
        else:
            values, columns = k_largest_of_groups(tile, k, with_rows)
        # Before the next one is made.
        del tile
        if with_rows:
            columns = first + columns
            columns = columns if found is None else torch.cat([found, columns], 1)
        values = torch.cat([best, values], 1)
        best, found = k_largest(values, min(k, values.shape[1]), columns)
        first += n_columns
        if on_cpu:
            # Of as many columns as came before only k, on average, exceed the k-th best.
            n_columns = min(first, TILE * TILE // len(queries) // GROUP * GROUP)
    return best, found


def in_float32(bank):
    """Return a bank of float64 in float32, scaled to lengths of at most 1, and the scale."""
    rows = torch.empty_like(bank, dtype=torch.float32)
    scale = max(float(lengths(block).amax()) for block in bank.split(TILE))
    scale = max(scale, torch.finfo(bank.dtype).tiny)
    for out, block in zip(rows.split(TILE), bank.split(TILE), strict=True):
        out.copy_(block / scale)
    return rows, scale


def refines(queries, n_bank, k):
    """Tell whether a search of a bank in float32 and products in float64 of what is found pay."""
    is_double = (queries.device.type, queries.dtype) == ("cpu", torch.float64)
    # A product with rows that lie apart takes 50 times as long as one in a tile.
    return is_double and n_bank >= 200 * (k + SPARE)


def refined_search(queries, bank, single, scale, k, own=None, memory=None):
    """Like `search` of float64 with rows, in .75 of the time: first in float32, see `in_float32`.

    Of rows of length 1 a product of D numbers in float32 is off by (D + 3) eps / 2 at most. Queries
    whose k-th product is not larger by that than what was left out are searched for in float64.
    """
    sizes = lengths(queries).clamp(min=torch.finfo(queries.dtype).tiny)
    directions = (queries / sizes[:, None]).float()
    near, found = search(directions, single, k + SPARE, own, True, memory)
    products = torch.empty_like(near, dtype=queries.dtype)
    n_columns = max(1, TILE * TILE // queries.numel())
    for out, rows in zip(products.split(n_columns, 1), found.split(n_columns, 1), strict=True):
        near_rows = bank.index_select(0, rows.flatten()).view(*rows.shape, -1)
        out.copy_(torch.bmm(near_rows, queries[:, :, None])[:, :, 0])
    best, found = k_largest(products, k, found)
    most = near[:, 0].double() + (queries.shape[1] + 3) / 2 * torch.finfo(near.dtype).eps
    unsure = (~(best[:, 0] >= most * sizes * scale)).nonzero()[:, 0]
    if len(unsure):
        own = None if own is None else own[unsure]
        best[unsure], found[unsure] = search(queries[unsure], bank, k, own, True)
    return best, found


def reduce_largest(reduce, queries, bank, k, own=None, with_rows=False, single=None):
    """Reduce the k largest inner products of each query with the bank, by exact search in tiles.

    On a CPU the first tile is sorted. Of later ones, whose columns fall into groups, only groups
    whose maximum exceeds the k-th best so far are looked into.

    Parameters
    ----------
    reduce : callable
        Maps the products (n_samples, k), in any order, the queries and the indices of the rows of
        the bank, or None, to (n_samples,).
    queries : Tensor of shape (n_samples, D)
        Rows.
    bank : Tensor of shape (n_bank, D)
        Rows, best in random order: sorted by class, later rows keep exceeding earlier ones.
    k : int
        At most n_bank, less one with `own`.
    own : Tensor of shape (n_samples,), dtype int64, default=None
        The bank row to leave out for each query; -1 for none.
    with_rows : bool, default=False
        Whether `reduce` wants the indices.
    single : tuple of Tensor and float, default=None
        The bank `in_float32`, where a search in that `refines`.

    Returns
    -------
    reduced : Tensor of shape (n_samples,), dtype float64
        In blocks, so that of many queries not all products are kept.
    """
    reduced = torch.empty(len(queries), dtype=torch.float64, device=queries.device)
    n_found, dtype = (k, queries.dtype) if single is None else (k + SPARE, torch.float32)
    # What is found for a block of queries is no larger than a tile.
    on_cpu, memory = is_sorted_by_numpy(queries), None
    n_queries = max(1, tile_shape(queries)[0] * TILE // max(n_found, TILE))
    if on_cpu:
        # Not taken from the system anew for each tile.
        memory = queries.new_empty(max(n_found, TILE * TILE), dtype=dtype)
    for start in range(0, len(queries), n_queries):
        block = slice(start, start + n_queries)
        of_block = None if own is None else own[block]
        if single is None:
            best, found = search(queries[block], bank, k, of_block, with_rows, memory)
        else:
            best, found = refined_search(queries[block], bank, *single, k, of_block, memory)
        reduced[block] = reduce(best.double(), queries[block], found)
    return reduced
