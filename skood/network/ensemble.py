"""Several networks as one."""

import math
from typing import Any

import torch
from torch import nn

from skood._compat import StrOptions
from skood.functional import at_least_float32
from skood.network.modules import two_logits
from skood.network.outputs import logits_key


class NetworkEnsemble(nn.Module):
    """Several classifiers of the same classes as one network.

    Parameters
    ----------
    *networks : nn.Module
        Each maps a batch of X to logits (n_samples, n_classes, ...), of the same classes in the
        same order.
    average : {"probabilities", "logits"}, default="probabilities"
        What is averaged. "probabilities": logits are the log of the mean probability, plus the
        mean energy. Their softmax is the mean probability, and their energy the mean energy.

    Notes
    -----
    Detectors take it as `model`, so that every method on logits is its ensemble version. There are
    no features that the networks have in common: for methods on features fit one detector a network
    and combine them by `skood.ensemble.EnsembleDetector`. What a single network gives is its layer,
    such as "networks.0.layer4"; the layer "members" is all of their logits, of shape
    (n_samples, n_networks, n_classes, ...).

    References
    ----------
    Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep
    Ensembles", NeurIPS 2017.

    Examples
    --------
    >>> import torch
    >>> from skood.network import NetworkEnsemble
    >>> _ = torch.manual_seed(0)
    >>> nets = [torch.nn.Linear(4, 3) for _ in range(5)]
    >>> X = torch.randn(2, 4)
    >>> mean = sum(net(X).softmax(1) for net in nets) / 5
    >>> torch.allclose(NetworkEnsemble(*nets)(X).softmax(1), mean)
    True
    """

    def __init__(self, *networks: nn.Module, average: str = "probabilities") -> None:
        super().__init__()
        for network in networks:
            if not isinstance(network, nn.Module):
                raise TypeError(
                    f"NetworkEnsemble got a {type(network).__name__}. It takes torch modules one "
                    "by one: NetworkEnsemble(a, b, c)."
                )
        if not networks:
            raise ValueError("NetworkEnsemble got no network. Give at least one.")
        options = StrOptions({"probabilities", "logits"})
        if not options.is_satisfied_by(average):
            raise ValueError(f"average must be {options}. Got {average!r}.")
        self.networks, self.average = nn.ModuleList(networks), average
        self.members = nn.Identity()

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return logits; all networks are called with the same arguments."""
        outputs = [logits_of(network(*args, **kwargs), network) for network in self.networks]
        logits = self.members(torch.stack(outputs, 1))
        if self.average == "logits":
            return logits.mean(1)
        log_p = torch.log_softmax(logits, 2)
        energies = torch.logsumexp(logits, 2, keepdim=True).mean(1)
        return torch.logsumexp(log_p, 1) - math.log(len(outputs)) + energies


def logits_of(output, network):
    """Return the logits in what a network returns, two in place of one."""
    key = logits_key(output, [])
    logits = output if key is None else output[key]
    if not isinstance(logits, torch.Tensor):
        raise TypeError(
            f"{type(network).__name__} returns a {type(logits).__name__}, in which no single entry "
            "is the logits. Wrap it in an nn.Module whose forward returns them alone."
        )
    logits = at_least_float32(logits)
    logits = logits.reshape(-1, 1) if logits.ndim < 2 else logits
    return two_logits(logits) if logits.shape[1] == 1 else logits
