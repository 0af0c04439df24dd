"""Why rows score as they do."""

from skood.estimators.explanation import Explanation

__all__ = [
    "Explanation",
]
