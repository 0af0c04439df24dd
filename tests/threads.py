"""Threads that score while others learn: ``python -m tests.threads``."""

import argparse
import itertools
import threading
import time
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


def serve(detector, n_requests, n_threads=8):
    """Score single rows in threads while another one refits, to two sets of rows in turn.

    Parameters
    ----------
    detector : detector
        Not fitted.
    n_requests : int
        How many rows are scored, in all threads together.
    n_threads : int, default=8
        Those that score.

    Returns
    -------
    wrong : int
        Requests without an answer, or whose score and decision are those of neither fit.
    seconds : ndarray of shape (n_requests,)
        How long each took.
    n_refits : int
        How often the detector was fitted meanwhile.
    total : float
        Seconds for all.
    """
    (X, y), _, (rows, _) = data()
    fits = (X, y), (2 * X + 1, y)
    detector = clone(detector)
    states = [(f.score_samples(rows), f.offset_) for f in (clone(detector).fit(*f) for f in fits)]
    detector.fit(*fits[0])
    scores, decisions, seconds = (np.full(n_requests, np.nan) for _ in range(3))
    requests, n_refits, stopped = iter(range(n_requests)), itertools.count(), threading.Event()

    def answer():
        for i in requests:
            row, start = rows[[i % len(rows)]], time.perf_counter()
            if i % 2:
                scores[i] = detector.score_samples(row)[0]
            else:
                decisions[i] = detector.decision_function(row)[0]
            seconds[i] = time.perf_counter() - start

    def refit():
        while True:
            detector.fit(*fits[(next(n_refits) + 1) % 2])
            if stopped.wait(0.05):
                return

    answering = [threading.Thread(target=answer) for _ in range(n_threads)]
    refitting, begin = threading.Thread(target=refit), time.perf_counter()
    for thread in (refitting, *answering):
        thread.start()
    for thread in answering:
        thread.join()
    total = time.perf_counter() - begin
    stopped.set()
    refitting.join()
    right = np.zeros(n_requests, bool)
    of = np.arange(n_requests) % len(rows)
    for expected, offset in states:
        right |= np.isclose(scores, expected[of], rtol=1e-9, atol=0)
        right |= np.isclose(decisions, expected[of] - offset, rtol=1e-9, atol=1e-12)
    return int((~right).sum()), seconds, next(n_refits), total


def main():
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--requests", type=int, help="score so many single rows instead")
    args = parser.parse_args()
    if args.requests:
        print(
            f"of {args.requests} requests  wrong  refits  a second  ms: 50 %   95 %   99 %  99.9 %"
        )
        for detector in detectors()[1::3]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wrong, seconds, n_refits, total = serve(detector, args.requests)
            ms = "".join(f"{q:7.2f}" for q in 1e3 * np.quantile(seconds, [0.5, 0.95, 0.99, 0.999]))
            name, rate = type(detector).__name__, args.requests / total
            print(f"{name:18}{wrong:8}{n_refits:8}{rate:10.0f}   {ms}", flush=True)
        return
    print(f"of {args.calls} calls   wrong  errors  pieces")
    for detector in detectors():
        wrong, errors, _, n_pieces = hammer(detector, args.calls)
        name = type(detector).__name__
        print(f"{name:17}{wrong:7}{len(errors):8}{n_pieces:8}", *map(repr, errors[:1]), flush=True)


if __name__ == "__main__":
    main()
