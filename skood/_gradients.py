"""Norms of per-sample gradients with respect to a network's parameters."""

import threading

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from skood._modules import private_copy
from skood.functional import clip_to

# Per-sample gradients of a micro-batch are alive at once.
MICRO_BATCH_BYTES = 128 * 2**20
MICRO_BATCH_ROWS = 32


class PerSampleGradientNorm(nn.Module):
    """Inputs → L1 norm of each sample's gradient with respect to chosen parameters.

    Parameters
    ----------
    network : nn.Module
        Maps inputs to logits; it is copied.
    names : set of str
        The parameters.
    logits_grad : callable
        Maps logits and temperature to the gradient of the loss with respect to the logits.
    temperature : float
        What the logits are divided by.
    """

    def __init__(self, network, names, logits_grad, temperature):
        super().__init__()
        self.network = private_copy(network)
        self.logits_grad, self.temperature = logits_grad, temperature
        self._chosen = {n: p for n, p in self.network.named_parameters() if n in names}
        row_bytes = sum(p.numel() * p.element_size() for p in self._chosen.values())
        # functional_call puts other parameters into the module while it runs.
        self._lock = threading.Lock()
        self._micro_batch = max(1, min(MICRO_BATCH_ROWS, MICRO_BATCH_BYTES // row_bytes))

    def _sample_norm(self, x):
        """Return the norm for one sample."""

        def logits_of(chosen):
            # Copies of all that a network may write to: its input and its buffers.
            batch = tree_map(lambda part: part.unsqueeze(0).clone(), x)
            buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
            return torch.func.functional_call(self.network, {**buffers, **chosen}, (batch,))

        logits, pull_back = torch.func.vjp(logits_of, self._chosen)
        # The loss's gradient at the logits is in closed form, which stays exact where the loss
        # itself rounds to 0 or infinity. Times the temperature it survives half precision.
        grad = self.logits_grad(logits, self.temperature) * self.temperature
        (grads,) = pull_back(grad.to(logits.dtype))
        norm = sum(grad.abs().sum(dtype=torch.float64) for grad in grads.values())
        return clip_to(norm / self.temperature, torch.float64)

    def forward(self, x):
        """Score inputs of shape (n_samples, ...)."""
        with self._lock:
            try:
                return torch.func.vmap(self._sample_norm, chunk_size=self._micro_batch)(x)
            except RuntimeError:
                # vmap follows no branch on data and no recurrent layer; one sample at a time does.
                leaves, form = tree_flatten(x)
                samples = (tree_unflatten(parts, form) for parts in zip(*leaves, strict=True))
                return torch.stack([self._sample_norm(sample) for sample in samples])
