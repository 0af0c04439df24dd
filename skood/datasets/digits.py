"""Real OOD detection data that comes with scikit-learn, without any download."""

from typing import Any

import numpy as np
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split
from sklearn.utils import Bunch, check_random_state

from skood._typing import RandomState

__all__ = ["load_digits_ood"]

_N_KNOWN = 6
_SIDE = 8
_CUT = 16
_N_CUTS_PER_PHOTOGRAPH = 250
_N_NOISE = 500

_DESCR = """\
Handwritten digits with out-of-distribution images
--------------------------------------------------

All images are 8x8 pixels, grayscale, float32 between 0 and 1.

In-distribution, split at random into a training and a test part with equal shares of each digit:

- the digits 0 to 5 of `sklearn.datasets.load_digits`, 1083 images (x / 16).

Out-of-distribution, from near to far:

- near: the digits 6 to 9 of the same collection, 714 images;
- textures: 500 cuts from the photographs of `sklearn.datasets.load_sample_images` (a Chinese
  pavilion and a flower; authors and licenses are in its DESCR), 250 of each. Each photograph is
  turned to gray (ITU-R BT.601 luma) and divided into 1040 squares of 16x16 pixels that do not
  overlap, and every square is averaged to 8x8. The 250 squares of highest contrast (standard
  deviation of the pixels) remain: half of both photographs is sky or blurred background, where
  a square holds one gray value and no texture;
- noise: 500 images of independent uniform pixels.
"""


def _to_rows(images, as_images):
    """Return images of shape (n, 8, 8) as float32 of shape (n, 1, 8, 8) or (n, 64)."""
    shape = (1, _SIDE, _SIDE) if as_images else (_SIDE * _SIDE,)
    return np.asarray(images, dtype=np.float32).reshape(-1, *shape)


def _load_photographs():
    """Return the two sample photographs, each of shape (427, 640, 3), uint8."""
    try:
        return load_sample_images().images
    except ImportError as error:
        raise ImportError(
            "load_digits_ood cuts textures from JPEG photographs, which needs pillow: "
            "pip install pillow"
        ) from error


def _cut_textures(photograph):
    """Return the squares of highest contrast, of shape (250, 8, 8), from left to right, downwards.

    Squares of 16 pixels are averaged to 8: cuts of 8 pixels at full resolution are mostly
    smooth (only 8 % of the flower's have a standard deviation above 0.05), and squares of 32
    pixels are too few.
    """
    gray = photograph @ np.array([0.299, 0.587, 0.114]) / 255
    n_rows, n_columns = (length // _CUT for length in gray.shape)
    step = _CUT // _SIDE
    pixels = gray[: n_rows * _CUT, : n_columns * _CUT]
    pixels = pixels.reshape(n_rows, _SIDE, step, n_columns, _SIDE, step).mean(axis=(2, 5))
    squares = pixels.swapaxes(1, 2).reshape(-1, _SIDE, _SIDE)
    order = np.argsort(squares.std(axis=(1, 2)))
    return squares[np.sort(order[-_N_CUTS_PER_PHOTOGRAPH:])]


def load_digits_ood(
    *,
    random_state: RandomState = 0,
    test_size: float = 0.4,
    as_images: bool = True,
    return_X_y: bool = False,
) -> Any:
    """Load small real images with three kinds of OOD images, near to far.

    The digits 0 to 5 are in-distribution. Out-of-distribution are the digits 6 to 9 ("near"),
    cuts from photographs ("textures") and uniform pixels ("noise"). Everything comes with
    scikit-learn; nothing is downloaded.

    ================================= ==============
    Training and test rows            649 and 434
    Classes                           6
    OOD rows: near, textures, noise   714, 500, 500
    Shape of a row                    (1, 8, 8)
    Values                            float32, 0 - 1
    ================================= ==============

    Parameters
    ----------
    random_state : int, RandomState instance or None, default=0
        Decides which digits are test rows, and draws the noise; the near and texture images are
        always the same. A fixed number, so that results can be compared between calls.
    test_size : float or int, default=0.4
        The share (or the number) of the in-distribution rows set aside for testing, with equal
        shares of each digit. 0.4 leaves about as many test rows as there are OOD rows of a kind.
    as_images : bool, default=True
        Whether rows are images of shape (1, 8, 8), for networks, or vectors of 64 pixels.
    return_X_y : bool, default=False
        Whether to return plain arrays, with all OOD rows behind the test rows, instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Dictionary-like object with the fields below; n stands for a number of rows.

        X_train : ndarray of shape (n, 1, 8, 8) or (n, 64), dtype float32
            The in-distribution training rows.
        y_train : ndarray of shape (n,), dtype int64
            Their digits, 0 to 5.
        X_test : ndarray of shape (n, 1, 8, 8) or (n, 64), dtype float32
            The in-distribution test rows.
        y_test : ndarray of shape (n,), dtype int64
            Their digits, 0 to 5.
        ood : dict of str to ndarray of shape (n, 1, 8, 8) or (n, 64), dtype float32
            The OOD rows under "near", "textures" and "noise", in this order.
        target_names : ndarray of shape (6,)
            The in-distribution classes.
        DESCR : str
            What the data are and how they were made.
    (X_train, y_train, X_test, y_test) : tuple of ndarrays
        If `return_X_y` is True. The test part holds the in-distribution test rows followed by
        all OOD rows in the order of `ood`, which are labelled -1.

    Raises
    ------
    ImportError
        If pillow, which reads the photographs, is not installed.
    ValueError
        If `test_size` leaves a part without rows of some digit.

    References
    ----------
    .. [1] E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
       Learning Repository, 1998.
       https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits

    Examples
    --------
    >>> from skood.datasets import load_digits_ood
    >>> data = load_digits_ood()
    >>> data.X_train.shape, data.X_test.shape
    ((649, 1, 8, 8), (434, 1, 8, 8))
    >>> {name: len(X) for name, X in data.ood.items()}
    {'near': 714, 'textures': 500, 'noise': 500}

    With the OOD rows in one array, ready for any detector:

    >>> from sklearn.ensemble import IsolationForest
    >>> from skood.metrics import auroc_score
    >>> X_train, _, X, y = load_digits_ood(as_images=False, return_X_y=True)
    >>> detector = IsolationForest(random_state=0).fit(X_train)
    >>> round(auroc_score(y, detector.score_samples(X)), 1)
    0.9
    """
    rng = check_random_state(random_state)
    digits = load_digits()
    images = _to_rows(digits.images / 16, as_images)
    known = digits.target < _N_KNOWN
    X_train, X_test, y_train, y_test = train_test_split(
        images[known],
        digits.target[known],
        test_size=test_size,
        random_state=rng,
        stratify=digits.target[known],
    )
    noise = rng.uniform(size=(_N_NOISE, _SIDE, _SIDE))
    textures = [_cut_textures(photograph) for photograph in _load_photographs()]
    ood = {
        "near": images[~known],
        "textures": _to_rows(textures, as_images),
        "noise": _to_rows(noise, as_images),
    }
    if return_X_y:
        n_ood = sum(map(len, ood.values()))
        X_test = np.concatenate([X_test, *ood.values()])
        return X_train, y_train, X_test, np.concatenate([y_test, np.full(n_ood, -1)])
    return Bunch(
        X_train=X_train,
        y_train=y_train,
        X_test=X_test,
        y_test=y_test,
        ood=ood,
        target_names=digits.target_names[:_N_KNOWN],
        DESCR=_DESCR,
    )
