"""Watching a stream of rows: how many are out-of-distribution, and whether they have changed."""

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skood._compat import move_to_numpy
from skood._typing import Inputs, Labels, RandomState
from skood.data.labels import is_ood
from skood.decisions.evidence import POOL
from skood.decisions.monitor_page import page
from skood.decisions.p_values import check_scores
from skood.decisions.reading import last_step, scored, snapshot
from skood.decisions.watched import GROUP_POOL, MAX_GROUPS, MonitorReport, Watched, share_interval
from skood.estimators.network_estimator import OneState
from skood.metrics.scorers import known_labels

FORMAT = 1


class Monitor(OneState):
    r"""Watch rows in service: the share of OOD rows, and an alarm when rows have changed.

    **The alarm.** Each score is ranked among the calibration scores and all scores of the stream
    before it; its rank is a conformal p-value, p. A capital of 1 is staked on p being low, by a
    mixture of the densities :math:`\kappa p^{\kappa - 1}`, between which it moves. The capital is
    the evidence, an e-process: **as long as rows stay like the calibration rows, the probability
    that it ever reaches 1 / `level` is at most** `level`, however long the stream and however often
    one looks. Rows that score *higher* than before raise no alarm.

    **What it takes.** Calibration rows that neither the detector nor the network has seen, given to
    `calibrate` or before to the detector's ``set_threshold``, and independent rows: frames of
    a film that resemble each other are none, give every tenth or so. Without them the scores of the
    training rows serve, each as if not learned from. That is close where the network has not
    seen these rows either, and no guarantee.

    Parameters
    ----------
    detector : fitted estimator
        skood's, a Pipeline that ends in one, or any with ``decision_function``.
    classifier : fitted classifier or callable, default=None
        What it predicts, or returns, for rows is their sub-population. With calibration rows each
    XX
    level : float, default=0.05
        The probability of a false alarm, between 0 and 1.
    window : int, default=100
        How many rows a window of `to_frame` and the display counts.
    confidence : float, default=0.95
        That of the intervals.
    history : int, default=1000
        How many windows are kept, the latest.
    random_state : int, RandomState or None, default=None
        Draws which scores are left out where there are more than are compared to.

    Attributes
    ----------
    n_rows, n_ood : int
        The rows since the start, and how many of them are called out-of-distribution.
    e_value : float
        The evidence.
    p_value : float
        1 over the largest evidence so far, at most 1.
    alarm : bool
        Whether the evidence has reached 1 / `level`. It stays so until `reset`.
    alarm_at : int or None
        After which row it did.

    See Also
    --------
    skood.calibration.ConformalDetector : P-values of single rows.

    Notes
    -----
    Why it is valid. A fixed set of calibration scores would not do: given these, p-values are not
    uniform, and 10 000 rows are enough to see that of any set of some hundred. So each score joins
    those that later ones are compared to. If all scores are exchangeable, the rank of the latest
    among the pool does not depend on which scores are in the pool with it, nor on later ranks: by
    induction from the end all ranks are independent and uniform, of equal scores larger than that.
    A density that falls then has a mean of 1 or less, a product of such a supermartingale, a
    mixture of products too, and Ville's inequality bounds how far one ever rises. The pool
    holds 16 384 scores. When it is full a score leaves whose place in the order is drawn at random,
    which tells nothing of the rank of the latest: the pool stays a sample of all.

    What the price is. A change is found sooner the more calibration rows there are, and the
    sooner it comes: the capital that bets on changes shrinks as 1 over the number of rows, so that
    a late one takes some ten rows more. What changes so slowly that the pool changes with
    it is not found: compare the windows.

    State is bounded: the pools, the windows and 1000 sub-populations; of more rows are counted
    together. `update` may be called from several threads.

    References
    ----------
    Vovk, Nouretdinov, Gammerman, "Testing exchangeability on-line", ICML 2003.

    Vovk et al., "Retrain or not retrain: conformal test martingales for change-point detection",
    COPA 2021.

    Ramdas et al., "Game-theoretic statistics and safe anytime-valid inference", Statistical
    Science 38(4), 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from skood import GMMDetector
    >>> from skood.monitoring import Monitor
    >>> rng = np.random.default_rng(0)
    >>> detector = GMMDetector().fit(rng.normal(size=(500, 4)))
    >>> monitor = Monitor(detector, random_state=0).calibrate(rng.normal(size=(500, 4)))
    >>> monitor.update(rng.normal(size=(1000, 4))).alarm
    False
    >>> rows = rng.normal(size=(200, 4))
    >>> rows[::5] += 4
    >>> report = monitor.update(rows)
    >>> report.n_ood, report.alarm, report.alarm_at
    (50, True, 1035)
    """

    def __init__(
        self,
        detector: Any,
        classifier: Any = None,
        *,
        level: float = 0.05,
        window: int = 100,
        confidence: float = 0.95,
        history: int = 1000,
        random_state: RandomState = None,
    ) -> None:
        for name, value in (("level", level), ("confidence", confidence)):
            if not isinstance(value, Real) or not 0 < value < 1:
                raise ValueError(f"{name} must be a number between 0 and 1, got {value!r}.")
        for name, value in (("window", window), ("history", history)):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}.")
        check_is_fitted(detector)
        if classifier is not None and not callable(getattr(classifier, "predict", classifier)):
            raise TypeError(
                f"classifier must have predict or be a function, got {type(classifier).__name__}."
            )
        self.detector, self.classifier = detector, classifier
        self.level, self.confidence = float(level), float(confidence)
        self.window, self.history = int(window), int(history)
        self._seed = int(check_random_state(random_state).randint(2**31))
        self._calibration: list[float] | None = None
        self._group_calibration: dict[Any, list[float]] = {}
        self._clear()

    # What is compared to

    def calibrate(
        self, X: Inputs, y: Labels | None = None, groups: Iterable[Any] | None = None
    ) -> Self:
        """Take the rows to compare to, and start anew.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            In-distribution rows that neither the detector nor its network has seen.
        y : array-like of shape (n_samples,), default=None
            Labels. Rows with a negative one, or of a class that ``fit`` did not see, are left out.
        groups : array-like of shape (n_samples,), default=None
            The sub-populations of the rows, in place of what `classifier` predicts.

        Returns
        -------
        self : object
            The monitor.
        """
        scores, _ = self._read(X)
        groups = self._groups(X, groups, len(scores))
        if y is not None:
            inside = ~is_ood(y, known_labels(self.detector))
            if len(inside) != len(scores):
                raise ValueError(f"X has {len(scores)} rows and y {len(inside)} labels.")
            scores = scores[inside]
            groups = None if groups is None else np.asarray(groups, object)[inside].tolist()
        if not len(scores):
            raise ValueError("X holds no in-distribution row to calibrate on.")
        with self._lock:
            self._calibration, self._group_calibration = self._some(scores, POOL), {}
            if groups is not None:
                by_name: dict[Any, list[float]] = {}
                for name, score in zip(groups, scores.tolist(), strict=True):
                    by_name.setdefault(name, []).append(score)
                if len(by_name) > MAX_GROUPS:
                    raise ValueError(f"{len(by_name)} sub-populations: {MAX_GROUPS} at most.")
                self._group_calibration = {
                    name: self._some(np.array(some), GROUP_POOL) for name, some in by_name.items()
                }
            self._clear()
        return self

    def _some(self, scores, size):
        """Return scores, or a sample of this size, as a list."""
        if len(scores) > size:
            scores = np.random.RandomState(self._seed).choice(scores, size, replace=False)
        return np.sort(scores).tolist()

    def _take_training_scores(self):
        """Compare to what the threshold of the detector came from."""
        final = snapshot(last_step(self.detector))
        kept = getattr(final, "_kept_scores", None)
        if not kept:
            raise ValueError(
                f"{type(final).__name__} keeps no scores of training rows to compare to.\n"
                "Give in-distribution rows that it has not seen: Monitor(detector).calibrate(X)."
            )
        ranks, scores = np.asarray(kept["ranks"]), np.asarray(kept["scores"], np.float64)
        n_scores = int(ranks[-1]) + 1
        if n_scores > len(scores):
            draws = np.random.RandomState(self._seed)
            at = np.sort(draws.choice(n_scores, POOL, replace=False))
            scores = np.interp(at, ranks, scores)
        self._calibration = scores.tolist()

    def reset(self) -> Self:
        """Forget the stream, and compare to the calibration rows again.

        Returns
        -------
        self : object
            The monitor, without an alarm.
        """
        with self._lock:
            self._clear()
        return self

    def _clear(self):
        """Start a stream."""
        self._watched = Watched(self.level, self.window, self.history)

    # The stream

    def update(self, X: Inputs, groups: Iterable[Any] | None = None) -> MonitorReport:
        """Take in the next rows of the stream.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows, in the order in which they came.
        groups : array-like of shape (n_samples,), default=None
            Their sub-populations, such as the classes that were predicted for them; in place of
            what `classifier` predicts.

        Returns
        -------
        report : MonitorReport
            The share of these rows that is out-of-distribution, and whether there is an alarm.

        Raises
        ------
        ValueError
            If the detector takes no such rows, which are then not counted, or keeps no scores to
            compare to and was not calibrated.
        """
        scores, ood = self._read(X)
        groups = self._groups(X, groups, len(scores))
        with self._lock:
            if self._calibration is None:
                self._take_training_scores()
            if self._watched.evidence is None:
                self._watched.begin(self._calibration, self._group_calibration, self._seed)
            names = [None] * len(scores) if groups is None else groups
            for score, is_out, name in zip(scores.tolist(), ood.tolist(), names, strict=True):
                self._watched.add(score, is_out, name, groups is not None)
            share, low, high = share_interval(ood.sum(), len(ood), self.confidence)
            return MonitorReport(
                n_rows=len(ood),
                n_ood=int(ood.sum()),
                share=float(share),
                interval=(float(low), float(high)),
                e_value=self.e_value,
                p_value=self.p_value,
                alarm=self.alarm,
                alarm_at=self.alarm_at,
            )

    def _read(self, X):
        """Return scores of rows, and which are out-of-distribution."""
        scores, _, ood = scored(self.detector, X)
        return check_scores(scores, calibrates=False), ood

    def _groups(self, X, groups, n_rows):
        """Return the sub-populations of rows as plain values; None where there are none."""
        if groups is None and self.classifier is not None:
            groups = getattr(self.classifier, "predict", self.classifier)(X)
        if groups is None:
            return None
        groups = move_to_numpy(groups)
        if groups.ndim != 1 or len(groups) != n_rows:
            raise ValueError(f"groups has shape {groups.shape}: one for each of {n_rows} rows.")
        return groups.tolist()

    # What there is to see

    @property
    def n_rows(self) -> int:
        """The rows since the start."""
        return self._watched.n_rows

    @property
    def n_ood(self) -> int:
        """How many of them are called out-of-distribution."""
        return self._watched.n_ood

    @property
    def e_value(self) -> float:
        """The evidence that rows have changed."""
        return self._watched.e_value

    @property
    def p_value(self) -> float:
        """1 over the largest evidence so far."""
        return min(1.0, 1 / self._watched.peak) if self._watched.peak else 1.0

    @property
    def alarm(self) -> bool:
        """Whether the evidence has reached 1 / `level`."""
        return self.alarm_at is not None

    @property
    def alarm_at(self) -> int | None:
        """After which row it did."""
        return self._watched.alarm_at

    def to_frame(self, by: str = "window") -> Any:
        """Return what was seen as a table.

        Parameters
        ----------
        by : {"window", "group"}, default="window"
            A line for each window of the history, or for each sub-population since the start.

        Returns
        -------
        table : pandas.DataFrame
            Columns "start" and "stop", the rows of the stream from start up to but without stop, or
            "group"; "n_rows", "n_ood", "share", "low" and "high", the interval; "e_value", the
            evidence at the end of the window, or that of the sub-population alone, NaN where it has
            no calibration rows.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("Monitor.to_frame needs pandas: pip install pandas") from error
        with self._lock:
            return pandas.DataFrame(self._watched.table(by, self.confidence))

    def __repr__(self):
        state = f"alarm at row {self.alarm_at}" if self.alarm else "no alarm"
        name = type(last_step(self.detector)).__name__
        return f"<Monitor of {name}: {self.n_ood} of {self.n_rows} rows OOD, {state}>"

    def _repr_html_(self):
        with self._lock:
            tables = (self._watched.table(by, self.confidence) for by in ("window", "group"))
            return page(self, *tables)

    # Saved and resumed

    def to_dict(self) -> dict[str, Any]:
        """Return all that the monitor holds besides detector and classifier, for JSON.

        Returns
        -------
        state : dict
            Numbers, text and lists: ``json.dump`` writes it.
        """
        with self._lock:
            return {
                "format": FORMAT,
                "params": {
                    name: getattr(self, name)
                    for name in ("level", "window", "confidence", "history")
                },
                "seed": self._seed,
                "calibration": self._calibration,
                "group_calibration": list(map(list, self._group_calibration.items())),
                **self._watched.to_dict(),
            }

    @classmethod
    def from_dict(cls, detector: Any, state: dict[str, Any], classifier: Any = None) -> Self:
        """Return a monitor that goes on where another was saved.

        Parameters
        ----------
        detector : fitted estimator
            The same, or what `skood.load` makes of its file.
        state : dict
            From `to_dict`.
        classifier : fitted classifier or callable, default=None
            The same.

        Returns
        -------
        monitor : Monitor
            It says what the other would have said.

        Raises
        ------
        ValueError
            If `state` is none of `to_dict`, or of a later version.
        """
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"state is none that Monitor.to_dict of format {FORMAT} has returned.")
        try:
            one = cls(detector, classifier, **state["params"])
            one._seed = int(state["seed"])
            if state["calibration"] is not None:
                one._calibration = [float(score) for score in state["calibration"]]
            one._group_calibration = {
                name: [float(score) for score in scores]
                for name, scores in state["group_calibration"]
            }
            one._watched.load(state)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"state is damaged: {error!r:.200}") from error
        return one
