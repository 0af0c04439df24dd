"""Comparing rows with a bank of rows, by their largest inner products: exact, or by faiss."""

import logging
from functools import cached_property

import numpy as np
import torch

from skood._warnings import warn
from skood.learning.blocks import takes_plain_path
from skood.learning.learning import LearningScorer
from skood.learning.products import in_float32, reduce_largest, refines
from skood.learning.reservoir import Reservoir

logger = logging.getLogger("skood")
# The rows that set the threshold are compared with the bank, which takes most of the time of `fit`:
# 20 000 took 94 % of it for a bank of 100 000. With these the share of false alarms of a 5 %
# threshold has a standard error of 0.28 %.
THRESHOLD_ROWS = 6_000


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
        # A bank of float64 and what `in_float32` makes of it, once that is needed.
        self._single = None, None

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

    def _in_float32(self):
        if self._single[0] is not self.bank:
            self._single = self.bank, in_float32(self.bank)
        return self._single[1]

    def reduced(self, reduce, queries, k, own=None, with_rows=False):
        """Return what becomes of the k largest inner products of queries with the bank."""
        if takes_plain_path(queries):
            k = min(k, len(self.bank))
            largest, found = (queries @ self.bank.T).topk(k, sorted=False)
            return reduce(largest.double(), queries, found)
        if self.index == "exact":
            k = min(k, len(self.bank))
            single = self._in_float32() if refines(queries, len(self.bank), k) else None
            return reduce_largest(reduce, queries, self.bank, k, own, with_rows, single)
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
