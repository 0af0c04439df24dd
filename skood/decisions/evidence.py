"""Evidence that scores have become lower: bets on their ranks among all scores before."""

import math
from array import array
from bisect import bisect_right

# What is staked on ranks p: the density κ p^(κ-1) for each κ; 1 stakes nothing. Of Gaussian scores
# with 20 % of rows 2 standard deviations lower, these find the shift after about 30 rows, and after
# 100 where 10 000 rows came before; finer steps, or steps in place of powers, find it no sooner.
POWERS = (1.0, 0.8, 0.5, 0.3)
# The stakes at the start, and where money goes that moves.
SHARES = (1 / 2, 1 / 6, 1 / 6, 1 / 6)
# At the n-th row 1 / (100 + n) of the money moves. A fixed share of .01 would lose a factor of e³⁵
# to bets on 10 000 rows that do not change, this one loses e³.
PATIENCE = 100
# So many scores are compared to.
POOL = 2**14
LARGEST_LOG = 700.0


def pseudo_random(seed, n, size):
    """Return the n-th of a sequence of uniform integers below `size` (splitmix64)."""
    mask = 2**64 - 1
    z = (seed + (n + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) * size) >> 64


class Evidence:
    """An e-process against scores that are exchangeable, by bets that they become lower.

    The n-th score is compared with a pool of those before, calibration scores first: of K scores
    in the pool b are as low, and its rank is p = (1 + b) / (1 + K). Then the score joins the pool,
    and where that becomes too large a score leaves it whose place in the order is drawn at random.
    The capital is multiplied by a mixture of densities that fall in p, and the evidence is that
    capital: if all scores are exchangeable it exceeds c, ever, with a probability of at most 1 / c.

    Parameters
    ----------
    calibration : sequence of float
        Scores to start from.
    seed : int
        Says which scores leave the pool.
    largest : int, default=POOL
        The size of the pool.
    """

    def __init__(self, calibration, seed, largest=POOL):
        self.pool, self.seed, self.largest = array("d", sorted(calibration)), seed, largest
        self.n_rows, self.log_capital, self.shares = 0, 0.0, list(SHARES)

    def add(self, score):
        """Take in one score; return the evidence."""
        place = bisect_right(self.pool, score)
        log_p = math.log((1 + place) / (1 + len(self.pool)))
        self.pool.insert(place, score)
        if len(self.pool) > self.largest:
            del self.pool[pseudo_random(self.seed, self.n_rows, len(self.pool))]
        moves = 1 / (PATIENCE + self.n_rows)
        shares = [
            ((1 - moves) * share + moves * start) * power * math.exp((power - 1) * log_p)
            for share, start, power in zip(self.shares, SHARES, POWERS, strict=True)
        ]
        total = sum(shares)
        self.shares = [share / total for share in shares]
        self.log_capital += math.log(total)
        self.n_rows += 1
        return self.value

    @property
    def value(self):
        """The evidence."""
        return math.exp(min(self.log_capital, LARGEST_LOG))

    def to_dict(self):
        """Return all there is, as numbers and lists."""
        return {**vars(self), "pool": self.pool.tolist()}

    @classmethod
    def from_dict(cls, state):
        """Return what `to_dict` told of."""
        one = cls(map(float, state["pool"]), int(state["seed"]), int(state["largest"]))
        one.n_rows, one.log_capital = int(state["n_rows"]), float(state["log_capital"])
        one.shares = [float(share) for share in state["shares"]]
        if len(one.shares) != len(SHARES) or not all(map(math.isfinite, one.shares)):
            raise ValueError(f"shares must be {len(SHARES)} numbers")
        return one
