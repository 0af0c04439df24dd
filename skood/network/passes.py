"""Several passes of one network with dropout, whose masks do not depend on the batch."""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves, tree_map

from skood.data.hashing import hash_of_text, uniform_at_places
from skood.functional import at_least_float32
from skood.network.layers import _Hooked
from skood.network.modules import module_device

# Those whose masks have one entry a channel.
BY_CHANNEL = nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout
SCALED = nn.AlphaDropout, nn.FeatureAlphaDropout
# What SELU tends to for very negative inputs.
ALPHA = -1.7580993408473766


def keep_masks(n_passes, shape, rate, seed, *place):
    """Return which entries each pass keeps, (n_passes, *shape).

    Made of a seed, the number of the pass, a place in the network and each entry's own place: they
    are the same on every device, and of a shorter text a part of those of a longer one.
    """
    masks = []
    for number in range(n_passes):
        word = hash_of_text(repr((int(seed), number, *place)))
        masks.append(uniform_at_places(word, shape) >= rate)
    return torch.stack(masks)


class DropoutPasses(_Hooked):
    """Map X to the logits of several passes with dropout: (n_samples, n_passes, n_classes, ...).

    A pass has one mask a call of a dropout layer, made of the seed, the number of the pass and the
    layer's name. All rows share it, so that a row's logits do not depend on the rows beside it:
    each pass is a fixed network, in which some units are missing. Masks are drawn with the first
    batch, which tells their shapes, and kept until rows of another size come.

    Parameters
    ----------
    network : nn.Module
        A private copy, for this alone.
    n_passes : int
        The number of passes.
    seed : int
        Of the masks.
    """

    def __init__(self, network, n_passes, seed):
        super().__init__(network)
        self.n_passes, self.seed = n_passes, seed
        # The size of a row; by layer and number of its call the axis of the rows, and masks.
        self._drawn = None
        for name, part in dropout_layers(network).items():
            part.register_forward_hook(partial(self._drop, name))

    def _drop(self, name, part, args, output):
        call = name, self._calls.counts[name]
        self._calls.counts[name] += 1
        if self._calls.number is None:
            self._calls.seen[call] = output.shape
            return output
        if call not in self._calls.drawn:
            raise ValueError(
                f"The dropout layer {name!r} is called another number of times in this pass than "
                "with the first row. Give `rate`, which drops what enters the last linear layer."
            )
        axis, masks = self._calls.drawn[call]
        kept = masks[self._calls.number]
        if kept.ndim == output.ndim:
            return dropped(output, kept, part)
        # A row may be several along the axis, such as windows or frames.
        rows = output.unflatten(axis, (-1, kept.shape[axis + 1]))
        return dropped(rows, kept, part).flatten(axis, axis + 1)

    def _draw(self, x, seed):
        """Return the masks for rows of this shape.

        The axis of a layer's output that holds the rows is the one that grows with their number:
        the first, or the second in recurrent layers and transformers without batch_first.
        """
        two, three = (self._shapes(x, n_rows) for n_rows in (2, 3))
        drawn = {}
        for (name, call), shape in two.items():
            part, shape = self.network.get_submodule(name), list(shape)
            sizes = zip(shape, three[name, call], strict=True)
            grown = [i for i, (a, b) in enumerate(sizes) if a != b]
            # None where dropout is of something else than rows, such as positions.
            axis = grown[0] if grown else 0
            if grown:
                shape[axis] //= 2
            if isinstance(part, BY_CHANNEL):
                shape[axis + 2 :] = [1] * len(shape[axis + 2 :])
            if grown and shape[axis] > 1:
                shape.insert(axis, 1)
            masks = keep_masks(self.n_passes, shape, part.p, seed, name, call)
            drawn[name, call] = axis, masks.to(module_device(self.network))
        return drawn

    def _shapes(self, x, n_rows):
        """Return the shape of what each call of a dropout layer gives for so many rows."""
        rows = tree_map(lambda part: part[:1].repeat_interleave(n_rows, 0), x)
        with self._recording(rows) as shapes:
            self._calls.number = None
            self.network(rows)
        return shapes

    def each(self, seed, x):
        """Yield the logits of each pass."""
        size, kept = [part.shape[1:] for part in tree_leaves(x)], self._drawn
        if kept is None or (kept[0] != size and not torch.compiler.is_exporting()):
            # What inference mode makes cannot be differentiated through.
            with torch.inference_mode(False), torch.no_grad():
                kept = self._drawn = size, self._draw(x, seed)
        for number in range(self.n_passes):
            with self._recording(x):
                self._calls.number, self._calls.drawn = number, kept[1]
                # A network may write to what it is given.
                logits = at_least_float32(self.network(tree_map(torch.clone, x)))
            yield logits

    def forward(self, x):
        """Return logits."""
        return torch.stack(list(self.each(self.seed, x)), 1)


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
    """Map what enters the head to the logits of several passes with dropout of it.

    Of maps whole channels are dropped: so each pass is a head some of whose weights are 0.

    Parameters
    ----------
    rest : nn.Module
        What `Network.cut` gives behind the cut in front of the head.
    width : int
        How many features or channels enter the head.
    n_passes, seed : int
        See `DropoutPasses`.
    rate : float
        The share of the features that a pass drops.
    """

    def __init__(self, rest, width, n_passes, seed, rate):
        super().__init__()
        self.rest, self.width = rest, width
        self.n_passes, self.seed, self.rate = n_passes, seed, rate
        self._drawn = None

    def each(self, seed, features, *others):
        """Yield the logits of each pass."""
        if self._drawn is None:
            with torch.inference_mode(False):
                masks = keep_masks(self.n_passes, (self.width,), self.rate, seed)
                self._drawn = masks.to(features.device)
        for kept in self._drawn:
            scale = kept.to(features.dtype) / (1 - self.rate)
            if isinstance(self.rest, nn.Linear):
                # It has fewer weights than a batch has features.
                yield linear(features, self.rest.weight * scale, self.rest.bias)
            else:
                scale = scale.view(-1, *[1] * (features.ndim - 2))
                yield self.rest(features * scale, *others)

    def forward(self, features, *others):
        """Return logits."""
        return torch.stack(list(self.each(self.seed, features, *others)), 1)
