"""Scores of training rows that were changed, by what the rows of other folds teach."""

import copy

import torch

from skood._warnings import silent
from skood.learning.blocks import score_in_folds
from skood.learning.learning import LearningScorer, unlearned
from skood.learning.states import State, StateList
from skood.learning.wrapping import WrappedScorer

N_FOLDS = 10


class CrossFitted(WrappedScorer):
    """A scorer that learns each of ten folds apart, to score a row by what the others teach.

    For rows that were moved since they were learned from. The closed forms of Gaussians and other
    sums would take the moved row out of these, not the one that is in: of digits whose distances
    were lowered by a gradient none was called OOD then, where 5 % were to be.
    """

    def __init__(self, scorer):
        super().__init__(scorer)
        self.needs_row_keys = self.folds_by_key = True
        self.without = {}

    explain = property(lambda self: self.scorer.explain)

    def init_state(self, inputs, n_classes, n_expected):
        """Return the states of the folds."""
        folds = (self.scorer.init_state(inputs, n_classes, n_expected) for _ in range(N_FOLDS))
        return State(folds=StateList(folds), counts=torch.zeros(N_FOLDS, dtype=torch.int64))

    def update(self, state, inputs, class_indices, keys):
        """Let each fold learn from its rows, which their keys tell."""
        folds = folds_of(keys)
        state.counts += folds.bincount(minlength=N_FOLDS).to(state.counts)
        for fold, own in enumerate(state.folds):
            chosen = folds == fold
            if bool(chosen.any()):
                rows = tuple(x[chosen] for x in inputs)
                self.scorer.update(own, rows, class_indices[chosen], keys[chosen])

    def finalize(self, state, classes):
        """Let the scorer finish with all folds, and a twin with all but each."""
        folds, present = list(state.folds), state.counts.nonzero()[:, 0].tolist()
        self.scorer.finalize(merged(folds), classes)
        for fold in present:
            # All rows where no row is in another fold, as when all rows are equal.
            others = [folds[other] for other in present if other != fold] or folds
            twin = unlearned(self.scorer)
            try:
                with silent():
                    twin.finalize(merged(others), classes)
            except ValueError:
                # These rows are too few, such as those of one class of two.
                twin = self.scorer
            self.without[fold] = twin

    def clear_cache(self):
        """Drop what only learning needs."""
        super().clear_cache()
        self.without = {}

    def leave_one_out(self, inputs, class_indices, keys):
        """Score rows, each by what the other folds teach."""
        return score_in_folds(
            lambda fold, *rows: self.without[fold].score_fresh(rows), folds_of(keys), *inputs
        )


def folds_of(keys):
    """Return the fold of rows, from their keys."""
    return (keys * N_FOLDS).long()


def merged(states):
    """Return the state of the rows of several."""
    total = copy.deepcopy(states[0])
    for state in states[1:]:
        total.merge(state)
    return total


def scorer_of_changed_rows(scorer):
    """Return a scorer whose `leave_one_out` holds for rows that differ from those learned from.

    That of others leaves rows out by their keys.
    """
    if not isinstance(scorer, LearningScorer):
        return scorer
    by_keys = scorer.needs_row_keys and not scorer.subtracts_inputs
    return scorer if by_keys else CrossFitted(scorer)
