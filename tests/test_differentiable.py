"""Scores can be differentiated: on the path that autograd takes they are those of the fast one."""

import numpy as np
import torch

from tests.registry import KINDS, SETTINGS, each, fitted, name_of

# Counts of rows and of bins: constant but for jumps.
STEPS = ("NAC", "CFOOD")


def rows_of(detector):
    """Return a fitted scorer and rows as it takes them, of which it has seen none."""
    found = fitted(detector)
    X = np.random.default_rng(0).normal(size=(40, 4)) + [5.0, 3, 3, 1]
    batches = found._inputs(found._check_rows(X, "score_samples"))
    return found.scorer_, [torch.cat(tensors) for tensors in zip(*batches, strict=True)]


@each([d for d in SETTINGS if not name_of(d).startswith(STEPS)], often=KINDS)
def test_gradients_are_those_of_small_differences(detector):
    scorer, rows = rows_of(detector)
    # Some tell which logit is the largest.
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in rows]
    scores = scorer(*leaves)
    torch.testing.assert_close(scores.detach(), scorer(*rows), rtol=1e-8, atol=1e-10)
    gradients = torch.autograd.grad(
        scores.sum(), [x for x in leaves if x.requires_grad], materialize_grads=True
    )
    generator = torch.Generator().manual_seed(0)
    steps = [(1e-5 * torch.randn(x.shape, generator=generator)).to(x) for x in rows]
    gradients = iter(gradients)
    expected = sum(
        (next(gradients) * step).view(len(x), -1).sum(1) if x.requires_grad else 0
        for x, step in zip(leaves, steps, strict=True)
    )
    up, down = (
        scorer(*(x + sign * s for x, s in zip(rows, steps, strict=True))) for sign in (1, -1)
    )
    same = torch.isclose((up - down) / 2, expected, rtol=1e-4, atol=1e-4 * expected.abs().amax())
    # A row may lie at an edge.
    assert same.float().mean() > 0.9 and expected.abs().amax() > 0


@each([d for d in SETTINGS if name_of(d).startswith(STEPS)])
def test_scores_without_a_gradient_have_none(detector):
    scorer, rows = rows_of(detector)
    assert not scorer(*(x.clone().requires_grad_() for x in rows)).requires_grad
