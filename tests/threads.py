"""Threads that score while others learn: ``python -m tests.threads``."""

import argparse
import itertools
import threading
import warnings

import numpy as np
import torch
from sklearn.base import clone
from torch import nn

from skood import ASHDetector, GMMDetector, GradNormDetector, NACDetector, NNGuideDetector

N_FEATURES, N_CLASSES = 6, 3
METHODS = "score_samples", "decision_function", "predict", "score"


def detectors():
    """Return the five detectors, on the head of a network that is trained."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(N_FEATURES, 16), nn.ReLU(), nn.Linear(16, N_CLASSES)).double()
    return [
        ASHDetector(net),
        GMMDetector(net),
        GradNormDetector(net, params="all"),
        NACDetector(net, alpha=1.0, o_star=20),
        NNGuideDetector(net, k=3),
    ]


def data():
    """Return rows to fit, a piece to learn from and rows to score, each with labels."""
    rng = np.random.default_rng(0)
    sets = [(60, 1.0), (20, 3.0), (50, 2.0)]
    return [(rng.normal(scale=s, size=(n, N_FEATURES)), np.arange(n) % 3) for n, s in sets]


def results(detector, X, y):
    """Return what the four methods give."""
    y = np.where(np.arange(len(y)) % 2, -1, y)
    return [np.asarray(getattr(detector, m)(*((X, y) if m == "score" else (X,)))) for m in METHODS]


def hammer(detector, n_calls, n_threads=8, refits=True):
    """Score in threads while one refits and one calls ``partial_fit``.

    Parameters
    ----------
    detector : detector
        Not fitted.
    n_calls : int
        How many calls score, in all threads together.
    n_threads : int, default=8
        Those that learn among them.
    refits : bool, default=True
        False: all but one score.

    Returns
    -------
    wrong : int
        Calls whose result is that of no state in which the detector ever was.
    errors : list of Exception
        What any thread raised.
    detector : detector
        As the threads left it.
    n_pieces : int
        How often ``partial_fit`` was called.
    """
    (X, y), piece, (X_new, y_new) = data()
    detector, found, errors = clone(detector).fit(X, y), [], []
    calls, pieces, stopped = iter(range(n_calls)), itertools.count(), threading.Event()
    labels = np.where(np.arange(len(y_new)) % 2, -1, y_new)

    def score():
        for i in calls:
            method = METHODS[i % len(METHODS)]
            arguments = (X_new, labels) if method == "score" else (X_new,)
            found.append((i % len(METHODS), np.asarray(getattr(detector, method)(*arguments))))

    def refit():
        while not stopped.wait(0.01):
            detector.fit(X, y)

    def learn():
        while not stopped.wait(0.002):
            detector.partial_fit(*piece)
            next(pieces)

    def guarded(work):
        try:
            work()
        except Exception as error:
            errors.append(error)

    learners = [refit, learn] if refits else [learn]
    work = [*learners, *[score] * (n_threads - len(learners))]
    threads = [threading.Thread(target=guarded, args=(w,)) for w in work]
    with warnings.catch_warnings():
        # That partial_fit after fit starts anew, and that labels are not what the network says.
        warnings.simplefilter("ignore")
        for thread in threads:
            thread.start()
        for thread in threads[len(learners) :]:
            thread.join()
        stopped.set()
        for thread in threads[: len(learners)]:
            thread.join()
        n_pieces = next(pieces)
        states = [results(clone(detector).fit(X, y), X_new, y_new)]
        reference = clone(detector)
        for _ in range(n_pieces):
            states.append(results(reference.partial_fit(*piece), X_new, y_new))
    wrong = sum(
        not any(np.allclose(result, state[m], rtol=1e-9, atol=0) for state in states)
        for m, result in found
    )
    return wrong + n_calls - len(found), errors, detector, n_pieces


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    args = parser.parse_args()
    print(f"of {args.calls} calls   wrong  errors  pieces")
    for detector in detectors():
        wrong, errors, _, n_pieces = hammer(detector, args.calls)
        name = type(detector).__name__
        print(f"{name:17}{wrong:7}{len(errors):8}{n_pieces:8}", *map(repr, errors[:1]), flush=True)


if __name__ == "__main__":
    main()
