"""What a monitor has seen of a stream: counts, windows, evidence."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import beta

from skood.decisions.evidence import POOL, Evidence

# Sub-populations that are told apart, and how many scores each is compared to.
MAX_GROUPS, GROUP_POOL = 1000, 2**11
OTHERS = "(others)"


@dataclass(frozen=True)
class MonitorReport:
    """What `Monitor.update` says of the rows it was given, and of the stream by now.

    Parameters
    ----------
    n_rows, n_ood : int
        How many rows there were, and how many of them ``predict`` calls out-of-distribution.
    share : float
        ``n_ood / n_rows``, NaN without rows.
    interval : tuple of float
        The interval of Clopper and Pearson for that share.
    e_value : float
        The evidence by now that rows have changed.
    p_value : float
        1 over the largest evidence so far, at most 1: valid whenever it is looked at.
    alarm : bool
        Whether the evidence has reached 1 / `level`.
    alarm_at : int or None
        After which row of the stream, from 1 on, it did.
    """

    n_rows: int
    n_ood: int
    share: float
    interval: tuple[float, float]
    e_value: float
    p_value: float
    alarm: bool
    alarm_at: int | None


def share_interval(n_ood, n_rows, confidence):
    """Return shares and the bounds of Clopper and Pearson, arrays for arrays."""
    k, n = np.asarray(n_ood, dtype=float), np.asarray(n_rows, dtype=float)
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        low = np.where(k > 0, beta.ppf(tail, k, n - k + 1), 0.0)
        high = np.where(k < n, beta.ppf(1 - tail, k + 1, n - k), 1.0)
        return k / n, low, high


class Watched:
    """The rows of a stream by now, in bounded memory.

    Parameters
    ----------
    level : float
        The evidence that makes an alarm is 1 over this.
    window, history : int
        The rows of a window, and how many windows are kept.
    """

    def __init__(self, level, window, history):
        self.level, self.window = level, window
        self.n_rows, self.n_ood, self.alarm_at, self.peak = 0, 0, None, 0.0
        # Of each: first row, rows, OOD rows, the evidence at the end.
        self.windows: deque[list[Any]] = deque(maxlen=history)
        # Of each sub-population: rows, OOD rows.
        self.counts: dict[Any, list[int]] = {}
        self.evidence: Evidence | None = None
        self.group_evidence: dict[Any, Evidence] = {}
        self._groups_total = 0.0

    def begin(self, calibration, group_calibration, seed):
        """Say what to compare to: scores, and those of each sub-population."""
        self.evidence = Evidence(calibration, seed, POOL)
        self.group_evidence = {
            name: Evidence(scores, seed + i, GROUP_POOL)
            for i, (name, scores) in enumerate(group_calibration.items(), 1)
        }
        self._groups_total = float(len(self.group_evidence))

    def add(self, score, is_out, group, has_group):
        """Take in one row."""
        if self.n_rows % self.window == 0:
            self.windows.append([self.n_rows, 0, 0, 1.0])
        self.n_rows += 1
        self.n_ood += is_out
        value = self.evidence.add(score)
        if has_group:
            known = group in self.counts or len(self.counts) < MAX_GROUPS
            counts = self.counts.setdefault(group if known else OTHERS, [0, 0])
            counts[0] += 1
            counts[1] += is_out
            if group in self.group_evidence:
                one = self.group_evidence[group]
                self._groups_total -= one.value
                self._groups_total += one.add(score)
        value = self._joined(value, self._groups_total)
        self.peak = max(self.peak, value)
        if self.alarm_at is None and value >= 1 / self.level:
            self.alarm_at = self.n_rows
        window = self.windows[-1]
        window[1:] = [window[1] + 1, window[2] + int(is_out), value]

    def _joined(self, value, total):
        """Return the evidence, from that of all rows and the sum of that of sub-populations."""
        # These are martingales each on its own information, which a mean of both would not be. Of
        # either to reach 2 / level has a probability of level / 2.
        n_groups = len(self.group_evidence)
        return max(value, total / n_groups) / 2 if n_groups else value

    @property
    def e_value(self):
        """The evidence."""
        if self.evidence is None:
            return 1.0
        total = math.fsum(one.value for one in self.group_evidence.values())
        return self._joined(self.evidence.value, total)

    def table(self, by, confidence):
        """Return columns by name, a line for each window or sub-population."""
        if by == "window":
            start, n, k, value = ([window[i] for window in self.windows] for i in range(4))
            columns = {"start": start, "stop": [a + b for a, b in zip(start, n, strict=True)]}
        elif by == "group":
            n, k = ([counts[i] for counts in self.counts.values()] for i in (0, 1))
            found = map(self.group_evidence.get, self.counts)
            value = [math.nan if one is None else one.value for one in found]
            columns = {"group": list(self.counts)}
        else:
            raise ValueError(f'by must be "window" or "group", got {by!r}.')
        share, low, high = share_interval(k, n, confidence)
        columns.update(n_rows=n, n_ood=k, share=share, low=low, high=high, e_value=value)
        return columns

    def to_dict(self):
        """Return all there is but the parameters, as numbers, text and lists."""
        return {
            "n_rows": self.n_rows,
            "n_ood": self.n_ood,
            "alarm_at": self.alarm_at,
            "peak": self.peak,
            "windows": list(map(list, self.windows)),
            "counts": [[name, *counts] for name, counts in self.counts.items()],
            "evidence": None if self.evidence is None else self.evidence.to_dict(),
            "group_evidence": [[n, one.to_dict()] for n, one in self.group_evidence.items()],
        }

    def load(self, state):
        """Take over what `to_dict` told of."""
        self.n_rows, self.n_ood = int(state["n_rows"]), int(state["n_ood"])
        self.alarm_at = None if state["alarm_at"] is None else int(state["alarm_at"])
        self.peak = float(state["peak"])
        for start, n, k, value in state["windows"]:
            self.windows.append([int(start), int(n), int(k), float(value)])
        self.counts = {name: [int(n), int(k)] for name, n, k in state["counts"]}
        if state["evidence"] is not None:
            self.evidence = Evidence.from_dict(state["evidence"])
        self.group_evidence = {n: Evidence.from_dict(e) for n, e in state["group_evidence"]}
        self._groups_total = math.fsum(one.value for one in self.group_evidence.values())
