"""Comparing rows with a bank of rows, by their largest inner products: exact, or by faiss."""

import logging
import platform
from functools import cache, cached_property

import numpy as np
import torch
from torch.backends import mkldnn
from torch.nn.functional import linear, pad

from skood._warnings import warn
from skood.learning.blocks import takes_plain_path
from skood.learning.learning import LearningScorer
from skood.learning.reservoir import Reservoir

logger = logging.getLogger("skood")
# Inner products are taken in tiles of at most this many queries and bank rows: 4 MiB of float32,
# which stay in a CPU's cache. A GPU would wait for the next tile: its tiles are wider, 64 MiB.
TILE, GPU_TILE_COLUMNS = 1024, 16 * 1024
# The rows that set the threshold are compared with the bank, which takes most of the time of `fit`:
# 20 000 took 94 % of it for a bank of 100 000. With these the share of false alarms of a 5 %
# threshold has a standard error of 0.28 %.
THRESHOLD_ROWS = 6_000


@cache
def is_intel():
    """Tell whether the processor is Intel's."""
    try:
        with open("/proc/cpuinfo") as file:
            return "GenuineIntel" in file.read()
    except OSError:
        return "GenuineIntel" in platform.processor()


def inner_products(queries, rows):
    """Return the inner product of each query with each row."""
    is_single = (queries.device.type, queries.dtype) == ("cpu", torch.float32)
    if is_single and mkldnn.is_available() and not is_intel():
        # torch multiplies float32 by MKL, which takes twice as long on AMD's processors, and .8 of
        # the time on Intel's.
        return linear(queries.to_mkldnn(), rows.to_mkldnn()).to_dense()
    return queries @ rows.T


def k_largest(values, k):
    """Return the k largest of each row, in any order; the rows may be changed."""
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        # A fifth of the time of topk.
        values.numpy().sort(axis=1)
        return values[:, -k:]
    return values.topk(k, sorted=False).values


def reduce_largest(reduce, queries, bank, k, own=None, with_rows=False):
    """Reduce the k largest inner products of each query with the bank, by exact search in tiles.

    On a CPU a tile's columns fall into groups. The k largest products lie within the k groups of
    the largest maxima, and only groups whose maximum exceeds the k-th best so far matter.

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

    Returns
    -------
    reduced : Tensor of shape (n_samples,), dtype float64
        In blocks, so that of many queries not all products are kept.
    """
    reduced = torch.empty(len(queries), dtype=torch.float64, device=queries.device)
    on_cpu = queries.device.type == "cpu"
    n_columns = TILE if on_cpu else GPU_TILE_COLUMNS
    group_size = 16 if k <= 32 else 8
    # The k best of a block of queries are no larger than a tile.
    n_queries = max(1, TILE * TILE // max(k, TILE))
    for start in range(0, len(queries), n_queries):
        block = queries[start : start + n_queries]
        best = block.new_full((len(block), k), -torch.inf)
        found = torch.zeros_like(best, dtype=torch.int64) if with_rows else None
        for first in range(0, len(bank), n_columns):
            tile = inner_products(block, bank[first : first + n_columns])
            if own is not None:
                column = own[start : start + n_queries] - first
                row = ((column >= 0) & (column < tile.shape[1])).nonzero().squeeze(1)
                tile[row, column[row]] = -torch.inf
            if not on_cpu:
                candidates, columns = tile.topk(min(k, tile.shape[1]), sorted=False)
                best, at = torch.cat([best, candidates], 1).topk(k, sorted=False)
                if found is not None:
                    found = torch.cat([found, first + columns], 1).gather(1, at)
                continue
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
                candidates = torch.cat([best[rows], candidates], 1)
                if found is None:
                    best[rows] = k_largest(candidates, k)
                else:
                    best[rows], at = candidates.topk(k, sorted=False)
                    columns = torch.arange(group_size, device=groups.device) * tile.shape[2]
                    columns = (first + groups[:, :, None] + columns).flatten(1)
                    found[rows] = torch.cat([found[rows], columns], 1).gather(1, at)
        reduced[start : start + n_queries] = reduce(best.double(), block, found)
    return reduced


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


def reduce_found(reduce, queries, index, k, own):
    """Like `reduce_largest`, of what a faiss index finds; 0 where that is nothing.

    Its k + 1 best less the own row, or less the last where it misses the own row.
    """
    n_largest = k + int((own >= 0).any())
    rows = np.ascontiguousarray(queries.float().cpu().numpy())
    products, found = map(torch.from_numpy, index.search(rows, n_largest))
    # faiss fills up with -1.
    others = (found >= 0) & (found != own.cpu().unsqueeze(1))
    others &= others.cumsum(1) <= k
    reduced = torch.zeros(len(rows), dtype=torch.float64)
    counts = others.sum(1)
    for n in counts.unique().tolist():
        if n:
            chosen = counts == n
            some = products[chosen][others[chosen]].view(-1, n)
            reduced[chosen] = reduce(some.double(), queries[chosen], None)
    return reduced.to(queries.device)


class BankScorer(LearningScorer):
    """A scorer that compares rows with a bank of training rows, perhaps drawn at random.

    A subclass has `bank_rows`, what the bank keeps of some inputs, and `compare`, which scores
    inputs by some of the largest products that `reduced` finds for them.
    """

    # Instead of a bank there may be a faiss index, written out.
    learned: tuple[str, ...] = ("bank", "index_bytes")
    n_threshold_rows = THRESHOLD_ROWS
    needs_row_keys = True

    def __init__(self, k, bank_size, index):
        super().__init__()
        self.k, self.bank_size, self.index = k, bank_size, index
        self.samples_by_key = bank_size is not None
        if index != "exact":
            # Before the network runs.
            import_faiss()
            self.not_exportable = f"index={index!r} is searched by faiss. Use index='exact'."
        # Of the rows of the bank, ascending.
        self.keys = None

    def bank_rows(self, *inputs):
        """Return the rows that the bank keeps of some inputs."""
        raise NotImplementedError

    def prepare(self, rows):
        """Return the rows of the bank in the form in which they are multiplied."""
        return rows

    def compare(self, inputs, k, own=None):
        """Score inputs by k rows of the bank, without the `own` row of each (n_samples,)."""
        raise NotImplementedError

    def init_state(self, inputs, n_classes, n_expected):
        """Return a bank without rows."""
        return Reservoir(self.bank_size, n_expected)

    def update(self, state, inputs, class_indices, keys):
        """Put the rows of a batch that are drawn into the bank."""
        chosen = state.choose(keys)
        state.add([self.bank_rows(*(tensor[chosen] for tensor in inputs))], keys[chosen])

    def finalize(self, state, classes):
        """Store the bank, or build its faiss index."""
        # The search is faster on a bank in random order, as that of keys is.
        self.keys, (rows,) = state.sample()
        self.bank, self.n_bank = self.prepare(rows), len(rows)
        logger.info("bank of %d rows, index=%r", len(self.bank), self.index)
        if self.index != "exact":
            self.index_bytes, self.bank = build_index(self.bank, self.index), None
            vars(self).pop("_faiss_index", None)

    @cached_property
    def _faiss_index(self):
        return import_faiss().deserialize_index(self.index_bytes.cpu().numpy())

    def reduced(self, reduce, queries, k, own=None, with_rows=False):
        """Return what becomes of the k largest inner products of queries with the bank."""
        if takes_plain_path(queries):
            k = min(k, len(self.bank))
            largest, found = (queries @ self.bank.T).topk(k, sorted=False)
            return reduce(largest.double(), queries, found)
        if self.index == "exact":
            k = min(k, len(self.bank))
            return reduce_largest(reduce, queries, self.bank, k, own, with_rows)
        if own is None:
            own = queries.new_full((len(queries),), -1, dtype=torch.int64)
        index = self._faiss_index
        return reduce_found(reduce, queries, index, min(k, index.ntotal), own)

    def as_in_bank(self, *inputs):
        """Return the rows that the bank would hold of some inputs, but for columns at the end."""
        return self.bank_rows(*inputs)

    def nearest(self, queries):
        """Return which rows of the bank (n_samples, k) the score of queries comes from."""
        if self.index != "exact":
            raise ValueError("Neighbours are told where index='exact' searches them.")
        found = []

        def keep(products, some, rows):
            found.append(rows)
            return products.amax(1)

        self.reduced(keep, queries, self.k, with_rows=True)
        return torch.cat(found)

    def n_neighbours(self):
        """Return how many neighbours are used; warn where the bank has fewer than k."""
        n_used = min(self.k, self.n_bank)
        if n_used < self.k:
            warn(f"k={self.k} is more than the {n_used} rows of the bank: k_={n_used} is used.")
        return n_used

    def forward(self, *inputs):
        """Score rows."""
        return self.compare(inputs, self.k)

    def clear_cache(self):
        """Drop what only learning needs."""
        self.keys = None

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows against the bank less themselves."""
        own = torch.searchsorted(self.keys, keys).clamp(max=self.n_bank - 1)
        own = torch.where(self.keys[own] == keys, own, -1)
        scores = torch.zeros(len(own), dtype=torch.float64, device=own.device)
        # A row of the bank has one neighbour less to choose from.
        for rows, n_others in ((own >= 0, self.n_bank - 1), (own < 0, self.n_bank)):
            k = min(self.k, n_others)
            if k:
                scores[rows] = self.compare([tensor[rows] for tensor in inputs], k, own[rows])
        return scores
