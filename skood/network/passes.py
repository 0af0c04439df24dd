"""Several passes of one network with dropout, whose masks do not depend on the batch."""

import hashlib
from functools import partial

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves, tree_map

from skood.functional import at_least_float32
from skood.network.layers import _Hooked

# Those whose masks have one entry a channel.
BY_CHANNEL = nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout
SCALED = nn.AlphaDropout, nn.FeatureAlphaDropout
# What SELU tends to for very negative inputs.
ALPHA = -1.7580993408473766


def keep_mask(shape, rate, key):
    """Return which entries are kept, by a generator whose seed is made of a key.

    Drawn on the CPU, so that it is the same on every device.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return torch.rand(shape, generator=generator) >= rate


class DropoutPasses(_Hooked):
    """Map X to the logits of several passes with dropout: (n_samples, n_passes, n_classes, ...).

    A pass has one mask a call of a dropout layer, made of the seed, the number of the pass and the
    layer's name. All rows share it, so that a row's logits do not depend on the rows beside it:
    each pass is a fixed network, in which some units are missing.

    Parameters
    ----------
    network : nn.Module
        A private copy, for this alone.
    n_passes : int
        The number of passes.
    seed : int
        Of the masks.
    """

    not_exportable = "its passes draw random numbers."

    def __init__(self, network, n_passes, seed):
        super().__init__(network)
        self.n_passes, self.seed = n_passes, seed
        for name, part in dropout_layers(network).items():
            part.register_forward_hook(partial(self._drop, name))

    def _drop(self, name, part, args, output):
        number, n_rows = self._calls.number, self._calls.n_rows
        call = self._calls.counts[name]
        self._calls.counts[name] += 1
        # The axis of the rows is the first, where a row may be several, such as windows or frames;
        # or the second, as in recurrent layers and transformers without batch_first.
        rows_first = output.shape[0] % n_rows == 0
        axis = 0 if rows_first else 1
        several = output.shape[axis] // n_rows
        split = output.unflatten(axis, (n_rows, several))
        shape = list(split.shape)
        shape[axis] = 1
        if isinstance(part, BY_CHANNEL):
            shape[axis + 3 :] = [1] * len(shape[axis + 3 :])
        kept = keep_mask(shape, part.p, (self.seed, number, name, call)).to(output.device)
        return dropped(split, kept, part).flatten(axis, axis + 1)

    def forward(self, x):
        """Return logits."""
        logits = []
        for number in range(self.n_passes):
            with self._recording(x):
                self._calls.number, self._calls.n_rows = number, len(tree_leaves(x)[0])
                # A network may write to what it is given.
                logits.append(at_least_float32(self.network(tree_map(torch.clone, x))))
        return torch.stack(logits, 1)


def dropped(values, kept, part):
    """Return what dropout makes of values, by the mask of those it keeps."""
    rate = part.p
    if not isinstance(part, SCALED):
        return torch.where(kept, values / max(1 - rate, 1e-30), 0)
    if rate == 1:
        return torch.zeros_like(values)
    scale = ((1 - rate) * (1 + rate * ALPHA**2)) ** -0.5
    return scale * torch.where(kept, values, ALPHA) - scale * ALPHA * rate


def dropout_layers(network):
    """Return the dropout layers of a network by name."""
    parts = network.named_modules()
    return {name: part for name, part in parts if isinstance(part, _DropoutNd) and part.p > 0}


class HeadPasses(nn.Module):
    """Map X to the logits of several passes with dropout of what enters the head.

    Parameters
    ----------
    features : nn.Module
        Maps X to what enters the head.
    head : nn.Module
        Maps features to logits.
    n_passes, seed : int
        See `DropoutPasses`.
    rate : float
        The share of the features that a pass drops.
    """

    not_exportable = "its passes draw random numbers."

    def __init__(self, features, head, n_passes, seed, rate):
        super().__init__()
        self.features, self.head = features, head
        self.n_passes, self.seed, self.rate = n_passes, seed, rate

    def forward(self, x):
        """Return logits."""
        features = self.features(x)
        masks = (
            keep_mask(features.shape[1:], self.rate, (self.seed, number)).to(features)
            for number in range(self.n_passes)
        )
        return torch.stack([self.head(features * (m / (1 - self.rate))) for m in masks], 1)
