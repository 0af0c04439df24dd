"""A function that looks at a model and data, and recommends detectors."""

import html
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch.utils.data import Dataset

import skood.detectors
from skood._typing import Inputs, Labels, Model
from skood.advice.looking import look
from skood.advice.rules import RULES, Rule, Situation

LAST_WORDS = "No detector is best on all data: compare them on your own, skood.benchmark.evaluate."


class Advice(Sequence[Any]):
    """Detectors to start with, best first, as `recommend` returns them.

    A sequence of detectors that hold the model and are ready to fit; it prints with the reasons.

    Parameters
    ----------
    rule : Rule
        The rule that applies.
    situation : Situation
        What was found.
    model : object
        What the detectors are given.

    Attributes
    ----------
    detectors : list of detector
        Not fitted.
    code : list of str
        A line for each that makes and fits it.
    reasons : list of str
        Why to take each.
    not_for : list of str
        Where not to take each.
    """

    def __init__(self, rule: Rule, situation: Situation, model: Model) -> None:
        self.rule, self.situation = rule, situation
        self.detectors: list[Any] = []
        self.code: list[str] = []
        data = "X, y" if situation.has_labels else "X"
        named = "" if model is None else "model"
        for choice in rule.choices:
            settings = choice.settings_for(situation)
            self.detectors.append(getattr(skood.detectors, choice.name)(model, **settings))
            self.code.append(f"{choice.text(named, settings)}.fit({data})")
        self.reasons = [choice.why for choice in rule.choices]
        self.not_for = [choice.not_for for choice in rule.choices]

    def __len__(self) -> int:
        return len(self.detectors)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self.detectors[index]

    def _entries(self) -> Iterator[tuple[str, str, str]]:
        """Yield code, reason and limit of each."""
        yield from zip(self.code, self.reasons, self.not_for, strict=True)

    def __repr__(self) -> str:
        lines = textwrap.wrap(f"Found: {self.situation}.", 100)
        for number, (code, why, not_for) in enumerate(self._entries(), 1):
            lines += ["", f"{number}. {code}"]
            for text in (f"For: {why}.", f"Not for: {not_for}."):
                lines += textwrap.wrap(text, 100, initial_indent="   ", subsequent_indent="   ")
        return "\n".join([*lines, "", LAST_WORDS])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<li><code>{html.escape(code)}</code><br>For: {html.escape(why)}.<br>"
            f"Not for: {html.escape(not_for)}.</li>"
            for code, why, not_for in self._entries()
        )
        found = html.escape(str(self.situation))
        return f"<p>Found: {found}.</p><ol>{rows}</ol><p>{html.escape(LAST_WORDS)}</p>"


def recommend(model: Model = None, X: Inputs | None = None, y: Labels | None = None) -> Advice:
    """Recommend two or three detectors to start with, for a model and data.

    Parameters
    ----------
    model : nn.Module, skorch net, scikit-learn classifier or None, default=None
        As every detector takes it. A trained one is run on 128 rows at most.
    X : array-like of shape (n_samples, ...), Dataset or DataLoader
        What ``fit`` would get. Of a ``Dataset`` or ``DataLoader`` the first batch is looked at.
    y : array-like of shape (n_samples,) or (n_samples, H, W), default=None
        Labels, as for ``fit``; negative ones are out-of-distribution.

    Returns
    -------
    advice : Advice
        A sequence of detectors that are ready to fit, best first. It prints what was found, and for
        each detector a line of code, what speaks for it, and where not to take it.

    Notes
    -----
    The first of ``skood.advice.RULES`` that applies decides; they are the table of the page
    "Choosing a detector". What was measured for them is on the page "How good are they?".

    Examples
    --------
    >>> import skood
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> advice = skood.recommend(None, X, y)
    >>> advice[0]
    GMMDetector()
    >>> advice.code[1]
    'KNNDetector(k=1, normalize=False).fit(X, y)'
    >>> scores = advice[0].fit(X, y).score_samples(X)
    """
    if X is None or isinstance(model, (np.ndarray, torch.Tensor, list, tuple, Dataset)):
        raise TypeError(
            "recommend takes a model, or None, and then X, and y where there are labels:\n"
            "recommend(net, X, y), or recommend(None, X, y) of embeddings."
        )
    situation = look(model, X, y)
    rule = next(rule for rule in RULES if rule.applies(situation))
    return Advice(rule, situation, model)
