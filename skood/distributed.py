"""Learning and scoring on dask collections, block by block where the blocks are."""

import hashlib
import math

import cloudpickle
import dask
import joblib
import numpy as np
from dask import array as da
from dask.sizeof import sizeof
from torch import nn

from skood._compat import move_to_numpy
from skood.data.labels import as_labels, encode_labels, is_label_map
from skood.estimators.chunks import LearnsFromChunks
from skood.estimators.network_estimator import computing
from skood.learning.accumulated import AccumulatedState
from skood.learning.states import State
from skood.network.modules import private_copy, unwrap

# States that one task brings together: a tree over 20 000 blocks is 5 high.
FAN_IN = 8
# Rows of all blocks that a head or a model is fitted to, and how much they may take.
MODEL_ROWS, MODEL_BYTES = 50_000, 2**30
# Rows that tell what must be known before the first, such as NAC's alpha, and of how many blocks.
PILOT_ROWS, PILOT_BLOCKS = 1000, 16
# One row in so many is in-distribution, at least, or samples take a second pass.
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
    lengths : tuple of int, or None
        The blocks' numbers of rows, where these are known.
    """

    def __init__(self, X, y):
        X = whole_rows(X)
        self.is_array, self.lengths = isinstance(X, da.Array), None
        if self.is_array and not any(map(math.isnan, X.chunks[0])):
            self.lengths = X.chunks[0]
        self.n_blocks = X.numblocks[0] if self.is_array else X.npartitions
        self.X, self.y = X, None if y is None else self._labels(y)

    def _labels(self, y):
        """Return labels in the same kind of collection, with the same blocks."""
        if not dask.is_dask_collection(y):
            if self.lengths is None:
                raise ValueError(
                    "The blocks of X are of unknown lengths, so y must be a dask collection with "
                    "the same blocks; or, of an array, call X.compute_chunk_sizes() first."
                )
            y = da.from_array(y if is_label_map(y) else as_labels(y), -1)
        if self.is_array and not isinstance(y, da.Array):
            y = y.to_dask_array()
        if self.is_array != isinstance(y, da.Array):
            raise TypeError(
                f"X is a dask dataframe, so y must be a series, not {type(y).__name__}."
            )
        if self.is_array:
            y = whole_rows(y)
            if self.lengths is not None and not math.isnan(y.shape[0]):
                if y.shape[0] != sum(self.lengths):
                    raise ValueError(
                        "Found input variables with inconsistent numbers of samples: "
                        f"[{sum(self.lengths)}, {y.shape[0]}]. X and y need one label for each row."
                    )
                y = y.rechunk({0: self.lengths})
        n_blocks = y.numblocks[0] if self.is_array else y.npartitions
        if n_blocks != self.n_blocks:
            raise ValueError(f"X has {self.n_blocks} blocks and y has {n_blocks}: they must agree.")
        return y

    def map(self, function, *args, chosen=None):
        """Return ``function(X, y, *args)`` of each block, or of some, as a list of Delayed."""
        X, y = self.X, self.y
        if self.is_array:
            if chosen is not None:
                X, y = X.blocks[chosen], None if y is None else y.blocks[chosen]
            # None as axes: handed on as they are.
            others = [part for arg in args for part in (arg, None)]
            mapped = da.blockwise(
                *(function, (0,), X, axes(X), y, axes(y), *others),
                adjust_chunks={0: 1},
                align_arrays=False,
                concatenate=True,
                dtype=object,
                meta=np.empty(0, object),
            )
        else:
            if chosen is not None:
                X, y = X.partitions[chosen], None if y is None else y.partitions[chosen]
            mapped = X.map_partitions(function, y, *args, meta=np.empty(0, object))
        return mapped.to_delayed().tolist()

    def n_expected(self):
        """Return a number of in-distribution rows that there are at least, 0 where none is known.

        Of more rows than the samples hold, each block keeps its share alone: at 10⁹ rows in blocks
        of 50 000 a bank of 50 000 needs 2 or 3 rows a block, of which 10 are kept.
        """
        if self.lengths is None:
            return 0
        return sum(self.lengths) // (1 if self.y is None else LEAST_SHARE)

    def first(self):
        """Return the first two in-distribution rows and their labels."""
        found = []
        for i in range(self.n_blocks):
            found += dask.compute(*self.map(pick, 2, False, chosen=[i]))
            n_rows = sum(len(X) for X, _ in found)
            if n_rows >= 2:
                break
        if n_rows < 2 and self.y is not None:
            raise ValueError(
                f"Found {n_rows} in-distribution sample(s) (a label that is not negative) in all "
                "blocks of X, while a minimum of 2 is required."
            )
        return join_rows(found)

    def sample(self, n_rows, n_blocks=None):
        """Return random in-distribution rows and their labels, of some blocks or of all."""
        chosen = np.arange(self.n_blocks)
        if n_blocks is not None and n_blocks < len(chosen):
            random = np.random.default_rng(0)
            chosen = np.sort(random.choice(chosen, n_blocks, replace=False))
        if self.lengths is None:
            size = math.ceil(n_rows / len(chosen))
        else:
            size = n_rows / max(1, sum(self.lengths[i] for i in chosen))
        return join_rows(dask.compute(*self.map(pick, size, True, chosen=chosen.tolist())))


def whole_rows(X):
    """Return an array whose blocks hold whole rows, or a dataframe, whose blocks do."""
    if isinstance(X, da.Array):
        return X.rechunk(dict.fromkeys(range(1, X.ndim), -1))
    # Of the class: a Delayed has any attribute.
    if hasattr(type(X), "map_partitions") and hasattr(type(X), "columns"):
        return X
    raise TypeError(f"X is a dask {type(X).__name__}; it must be a dask array or dataframe.")


def axes(X):
    """Return the names that `blockwise` shall give to axes: that of rows is 0 for X and y."""
    return None if X is None else tuple(range(X.ndim))


def pick(X, y, size, draws):
    """Return in-distribution rows of a block, the first or random ones: a number or a share."""
    inside, _, _ = encode_labels(None if is_label_map(y) else y, len(X), least=0)
    n_rows = size if isinstance(size, int) else math.ceil(size * len(X))
    if draws and len(inside):
        # Not the same positions in each block.
        seed = int(joblib.hash(np.asarray(take(X, inside[:1]))), 16)
        inside = np.sort(np.random.default_rng(seed).permutation(inside)[:n_rows])
    rows = inside[:n_rows]
    return take(X, rows), None if y is None else take(y, rows)


def take(X, rows):
    """Return rows of a block."""
    return X.iloc[rows] if hasattr(X, "iloc") else X[rows]


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
    if isinstance(twin, LearnsFromChunks) and not learns:
        # What `partial_fit` goes on from may be as large as a bank.
        twin._drop_accumulated()
    if estimator.device == "auto":
        twin.device_ = "cuda"
    model = estimator._as_fitted()._given_model
    if isinstance(model, nn.Module):
        # CUDA tensors cannot be read where there is no GPU.
        twin.model = private_copy(unwrap(model), "cpu")
        twin._fitted_params = {**estimator._fitted_params, "model": twin.model}
    packed = cloudpickle.dumps(twin)
    name = f"{type(estimator).__name__}-{hashlib.blake2b(packed, digest_size=16).hexdigest()}"
    return dask.delayed(cloudpickle.loads)(packed, dask_key_name=name)


def learn_block(X, y, estimator, n_expected):
    """Return what a block teaches; the same when it is run again elsewhere."""
    learned = estimator._learned.new(n_expected)
    if len(X):
        with computing():
            source = estimator._source(X, y, first=False, least=0)
            estimator._check_fits(source)
            estimator._learn(learned, estimator._training(source), source)
        learned.to("cpu")
    return learned


@sizeof.register(AccumulatedState)
@sizeof.register(State)
def sizeof_state(state):
    """Tell dask how much it moves, or writes to disk where memory is short."""
    values = vars(state) if isinstance(state, AccumulatedState) else state.__getstate__()
    return sum(map(sizeof, values.values()))


def merge_blocks(parts):
    """Return what several blocks teach; what each does stays, should this run again."""
    whole = parts[0].new()
    for part in parts:
        whole.merge(part)
    return whole


def learn(estimator, blocks, n_expected):
    """Return what all blocks teach, learned and merged on the workers."""
    level = blocks.map(learn_block, share(estimator, True), n_expected)
    merge = dask.delayed(merge_blocks)
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
    with detector._fitting(*first_rows(detector, blocks)) as (draft, source):
        draft._begin(source, lambda: blocks.sample(PILOT_ROWS, PILOT_BLOCKS))
        for n_expected in (blocks.n_expected(), 0):
            learned = learn(draft, blocks, n_expected)
            if learned.is_complete:
                break
        draft._learned = learned
        draft._finalize()
        draft._drop_accumulated()


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
    if hasattr(nothing, "columns"):
        raise TypeError(
            f"{type(estimator).__name__} gives frames, as set_output or set_config say, and none "
            "of dask.\nsklearn.set_config(transform_output='default') gives dask arrays."
        )
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
