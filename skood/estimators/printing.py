"""Networks as one line, where estimators print their parameters."""

import sys
from typing import Any

from torch import nn

from skood._typing import BaseEstimator
from skood.network.modules import module_device


class Described:
    """Stands for a module where it is printed: its class, size and device, on one line.

    Parameters
    ----------
    module : nn.Module
        Any network.
    """

    def __init__(self, module):
        self.module = module

    def __repr__(self):
        size = sum(
            p.numel()
            for p in self.module.parameters()
            if not isinstance(p, nn.parameter.UninitializedTensorMixin)
        )
        name = type(self.module).__name__
        return f"<{name}: {size:,} parameters on {module_device(self.module)}>"


def describe(parameters):
    """Return a copy of a dict with `Described` for modules that print on more than a line."""
    return {
        name: Described(p) if isinstance(p, nn.Module) and [*p.children()] else p
        for name, p in parameters.items()
    }


def for_printer(parameters):
    """Describe the networks among what ``get_params`` returns, if scikit-learn's printer asks.

    It takes the parameters of an estimator inside of a Pipeline or search from there, and never
    calls its `__repr__`.
    """
    printing = sys._getframe(2).f_globals.get("__name__") == "sklearn.utils._pprint"
    return describe(parameters) if printing else parameters


class PrintsNetworks(BaseEstimator):
    """Base of estimators that may hold a network, which prints on 200 lines."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters.

        Parameters
        ----------
        deep : bool, default=True
            Whether to add those of a `model` that is an estimator.

        Returns
        -------
        params : dict
            Names and values.
        """
        return for_printer(super().get_params(deep))

    def _get_params_html(self, *args, **kwargs):
        params = super()._get_params_html(*args, **kwargs)
        # Strings: of other objects it shows 30 characters.
        params.update({n: str(p) for n, p in describe(params).items() if p is not params[n]})
        return params
