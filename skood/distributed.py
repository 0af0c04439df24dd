"""Learning and scoring on dask collections, block by block where the blocks are."""

import hashlib
import math

import cloudpickle
import dask
import numpy as np
from dask import array as da
from dask.sizeof import sizeof
from torch import nn

from skood._compat import move_to_numpy
from skood._estimator import computing
from skood._labels import as_labels, encode_labels, is_label_map
from skood._learning import Learned
from skood._modules import private_copy, unwrap

# States that one task brings together: a tree over 20 000 blocks is 5 high.
FAN_IN = 8
# Rows of all blocks that a head or a model is fitted to, and how much they may take.
MODEL_ROWS, MODEL_BYTES = 50_000, 2**30
# Rows that tell what must be known before the first, such as NAC's alpha, and of how many blocks.
PILOT_ROWS, PILOT_BLOCKS = 1000, 16
# The share of in-distribution rows up to which samples need no second pass.
LEAST_SHARE = 4


class Blocks:
    """The blocks of a dask array or dataframe and of the labels that go with them.

    Parameters
    ----------
    X : dask array or dataframe
        Along the first axis its blocks are left as they are.
    y : dask array or series, array-like, or None
        Labels.

    Attributes
    ----------
    pairs : list of (Delayed, Delayed or array or None)
        X and y of each block.
    lengths : list of int, or None
        Their numbers of rows, where these are known.
    """

    def __init__(self, X, y):
        X, self.lengths = whole_rows(X), None
        if isinstance(X, da.Array) and not any(map(math.isnan, X.chunks[0])):
            self.lengths = [int(n) for n in X.chunks[0]]
        blocks = np.ravel(X.to_delayed()).tolist()
        self.pairs = list(zip(blocks, self._labels(y, len(blocks)), strict=True))

    def _labels(self, y, n_blocks):
        """Return the labels of each block."""
        if y is None:
            return [None] * n_blocks
        if not dask.is_dask_collection(y):
            if self.lengths is None:
                raise ValueError(
                    "The blocks of X are of unknown lengths, so y must be a dask collection with "
                    "the same blocks; or, of an array, call X.compute_chunk_sizes() first."
                )
            y = y if is_label_map(y) else as_labels(y)
            self._check_length(len(y))
            return np.split(y, np.cumsum(self.lengths)[:-1])
        if isinstance(y, da.Array):
            y = whole_rows(y)
            if self.lengths is not None and not math.isnan(y.shape[0]):
                self._check_length(y.shape[0])
                y = y.rechunk({0: tuple(self.lengths)})
        labels = np.ravel(y.to_delayed()).tolist()
        if len(labels) != n_blocks:
            raise ValueError(f"X has {n_blocks} blocks and y has {len(labels)}: they must agree.")
        return labels

    def _check_length(self, n_labels):
        if n_labels != sum(self.lengths):
            raise ValueError(
                f"Found input variables with inconsistent numbers of samples: "
                f"[{sum(self.lengths)}, {n_labels}]. X and y need one label for each row."
            )

    def n_expected(self):
        """Return a number of in-distribution rows that there are at least, 0 where none is known.

        Of more rows than the samples hold, each block keeps its share alone: at 10⁹ rows in blocks
        of 50 000 a bank of 50 000 needs 2 or 3 rows a block, of which 10 are kept.
        """
        if self.lengths is None:
            return 0
        return sum(self.lengths) // (1 if self.pairs[0][1] is None else LEAST_SHARE)

    def first(self):
        """Return the first two in-distribution rows and their labels."""
        found = []
        for X, y in self.pairs:
            found.append(dask.delayed(pick)(X, y, 2, None).compute())
            n_rows = sum(len(X) for X, _ in found)
            if n_rows >= 2:
                break
        if n_rows < 2 and y is not None:
            raise ValueError(
                f"Found {n_rows} in-distribution sample(s) (a label that is not negative) in all "
                "blocks of X, while a minimum of 2 is required."
            )
        return join_rows(found)

    def sample(self, n_rows, n_blocks=None):
        """Return random in-distribution rows and their labels, of some blocks or of all."""
        random = np.random.default_rng(0)
        chosen = np.arange(len(self.pairs))
        if n_blocks is not None and n_blocks < len(chosen):
            chosen = np.sort(random.choice(chosen, n_blocks, replace=False))
        weights = np.ones(len(chosen)) if self.lengths is None else np.take(self.lengths, chosen)
        sizes = np.ceil(n_rows * weights / max(1, weights.sum())).astype(int)
        picked = [
            dask.delayed(pick)(*self.pairs[i], int(size), int(i))
            for i, size in zip(chosen, sizes, strict=True)
        ]
        return join_rows(dask.compute(*picked))


def whole_rows(X):
    """Return an array whose blocks hold whole rows, or a dataframe, whose blocks do."""
    if isinstance(X, da.Array):
        return X.rechunk(dict.fromkeys(range(1, X.ndim), -1))
    # Of the class: a Delayed has any attribute.
    if hasattr(type(X), "map_partitions") and hasattr(type(X), "columns"):
        return X
    raise TypeError(f"X is a dask {type(X).__name__}; it must be a dask array or dataframe.")


def take(X, rows):
    """Return rows of a block."""
    return X.iloc[rows] if hasattr(X, "iloc") else X[rows]


def pick(X, y, n_rows, seed):
    """Return in-distribution rows of a block, the first or random ones."""
    inside, _, _ = encode_labels(None if is_label_map(y) else y, len(X), least=0)
    if seed is not None and n_rows < len(inside):
        inside = np.sort(np.random.default_rng(seed).choice(inside, n_rows, replace=False))
    rows = inside[:n_rows]
    return take(X, rows), None if y is None else take(y, rows)


def join_rows(pairs):
    """Return the rows of several blocks, and their labels, as one."""
    pairs = [(X, y) for X, y in pairs if len(X)] or pairs[:1]

    def join(parts):
        if hasattr(parts[0], "iloc"):
            import pandas as pd

            return pd.concat(parts)
        return np.concatenate([move_to_numpy(part) for part in parts])

    X, y = zip(*pairs, strict=True)
    return join(X), None if y[0] is None else join(y)


def share(estimator, learns=False):
    """Return an estimator as a task that each worker runs, or whose result it fetches, once.

    With ``device="auto"`` it computes on the worker's GPU, where there is one.
    """
    twin = object.__new__(type(estimator))
    vars(twin).update(vars(estimator), verbose=False)
    if not learns:
        # What `partial_fit` goes on from may be as large as a bank.
        for name in ("_learned", "_scorer", "_concluded"):
            vars(twin).pop(name, None)
    if estimator.device == "auto":
        twin.device_ = "cuda"
    model = estimator._fitted_params["model"]
    if isinstance(model, nn.Module):
        # CUDA tensors cannot be read where there is no GPU.
        twin.model = private_copy(unwrap(model), "cpu")
        twin._fitted_params = {**estimator._fitted_params, "model": twin.model}
    packed = cloudpickle.dumps(twin)
    name = f"{type(estimator).__name__}-{hashlib.blake2b(packed, digest_size=16).hexdigest()}"
    return dask.delayed(cloudpickle.loads)(packed, dask_key_name=name)


def learn_block(estimator, X, y, number, n_expected):
    """Return what a block teaches; the same when it is run again elsewhere."""
    learned = estimator._learned.new(number, n_expected)
    if len(X):
        with computing():
            source = estimator._source(X, y, first=False, least=0)
            estimator._check_fits(source)
            if len(source):
                estimator._learn(learned, source)
        learned.to("cpu")
    return learned


@sizeof.register(Learned)
def sizeof_learned(learned):
    """Tell dask how much it moves, or writes to disk where memory is short."""
    states = [s.__getstate__() for s in (learned.sample, learned.state) if s is not None]
    return sum(sizeof(value) for state in states for value in state.values())


def merge_blocks(parts):
    """Return what several blocks teach; what each does stays, should this run again."""
    whole = parts[0].new()
    for part in parts:
        whole.merge(part)
    return whole


def learn(estimator, blocks, n_expected):
    """Return what all blocks teach, learned and merged on the workers."""
    shared, learn_, merge = (
        share(estimator, True),
        dask.delayed(learn_block),
        dask.delayed(merge_blocks),
    )
    level = [learn_(shared, X, y, i, n_expected) for i, (X, y) in enumerate(blocks.pairs)]
    while len(level) > 1:
        level = [merge(level[i : i + FAN_IN]) for i in range(0, len(level), FAN_IN)]
    return level[0].compute()


def first_rows(estimator, blocks):
    """Return rows that suffice to take a network, and their labels; or to fit one.

    Parameters
    ----------
    estimator : NetworkEstimator
        To be fitted.
    blocks : Blocks
        Of its rows.
    """
    X, y = blocks.first()
    if estimator._fits_model:
        row_bytes = max(1, np.asarray(X[:1]).nbytes)
        X, y = blocks.sample(min(MODEL_ROWS, MODEL_BYTES // row_bytes))
    return X, y


def fit(detector, X, y):
    """Fit a detector to dask collections: learn from each block where it is, and merge in a tree.

    Parameters
    ----------
    detector : BaseDetector
        Its network travels to each worker once.
    X, y
        See `Blocks`.
    """
    blocks = Blocks(X, y)
    with detector._fitting(*first_rows(detector, blocks)) as source:
        detector._begin(source, lambda: blocks.sample(PILOT_ROWS, PILOT_BLOCKS))
        for n_expected in (blocks.n_expected(), 0):
            learned = learn(detector, blocks, n_expected)
            if learned.is_complete:
                break
        detector._learned = learned
        detector._conclude()
        detector._close()


def compute(scores, y):
    """Return scores and labels, computed together: what both come from is read once."""
    if hasattr(y, "map_partitions"):
        # dask warns when it computes arrays and series together.
        y = y.map_partitions(np.asarray, meta=np.empty(0, object))
    return dask.compute(scores, y, traverse=False)


def map_rows(estimator, method, X):
    """Return the results of a method for each row, as a lazy dask array with the blocks of X.

    Parameters
    ----------
    estimator : NetworkEstimator
        Fitted.
    method : str
        Of those that take X alone.
    X : dask array or dataframe
        Rows.
    """
    X = whole_rows(X)
    is_frame = hasattr(X, "columns")
    one = X._meta_nonempty if is_frame else np.ones((1, *X.shape[1:]), X.dtype)
    nothing = getattr(estimator, method)(one)[:0]
    arguments = call, share(estimator), method, nothing
    if is_frame:
        return X.map_partitions(*arguments, meta=nothing)
    return X.map_blocks(
        *arguments,
        chunks=(X.chunks[0], *nothing.shape[1:]),
        drop_axis=range(1, X.ndim),
        new_axis=range(1, nothing.ndim),
        meta=nothing,
    )


def call(X, estimator, method, nothing):
    """Return what a method gives for a block."""
    return getattr(estimator, method)(X) if len(X) else nothing
