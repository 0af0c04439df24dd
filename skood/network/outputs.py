"""What a network returns: where the logits are, and what they are not."""

from collections.abc import Mapping

import torch

from skood._compat import move_to_numpy
from skood.functional import all_finite, at_least_float32

# What Hugging Face calls the output of networks without a head, the most condensed first.
EMBEDDINGS = ("pooler_output", "image_embeds", "text_embeds", "last_hidden_state")


def rng_state(device):
    """Return the state of torch's global generator for a device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def gives(made, logits):
    """Tell whether the output of a layer is the logits; maps of a convolution are averaged."""
    if not is_same(made, logits) and made.ndim > 3:
        made = at_least_float32(made).flatten(2).mean(2)
    return is_same(made, logits)


def is_same(made, logits):
    """Tell whether two outputs are equal, to the rounding of the shorter dtype."""
    if made.shape != logits.shape:
        return False
    kinds = [t.dtype for t in (made, logits) if t.is_floating_point()]
    rtol = max([1e-5, *(2 * torch.finfo(kind).eps for kind in kinds)])
    return torch.allclose(made.double(), logits.double(), rtol=rtol, equal_nan=True)


def is_one_map(made, logits):
    """Tell whether logits are the one map that a convolution gives, without its axis."""
    return made.ndim > 3 and made.shape[1] == 1 and logits.ndim == made.ndim - 1


def describe_value(value):
    """Return an attribute of a module as something that hashes by its content."""
    if isinstance(value, torch.Tensor):
        return move_to_numpy(value)
    if isinstance(value, (list, tuple)):
        return [describe_value(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): describe_value(entry) for key, entry in value.items()}
    code = getattr(value, "__code__", None)
    return repr(value) if code is None else (value.__qualname__, code.co_code, repr(code.co_consts))


def logits_key(output, made):
    """Return where in a network's output the logits are; None for the output itself.

    Parameters
    ----------
    output : object
        What the network returned.
    made : list of Tensor
        What its linear layers gave.
    """
    if isinstance(output, Mapping):
        # "out" is torchvision's, beside what auxiliary heads give.
        for key in ("logits", "out"):
            if key in output:
                return key
        items = output.items()
    elif isinstance(output, (tuple, list)):
        items = enumerate(output)
    else:
        return None
    tensors = [(key, value) for key, value in items if isinstance(value, torch.Tensor)]
    if len(tensors) > 1:
        found = [key for key in EMBEDDINGS if key in dict(tensors)]
        if found:
            return found[0]
        tensors = [(key, value) for key, value in tensors if any(value is out for out in made)]
    return tensors[0][0] if len(tensors) == 1 else None


def describe_probabilities(logits, made):
    """Name the softmax or sigmoid that a network seems to end in; None where it returns logits."""
    if not all_finite(logits):
        return None
    for name, values in (("softmax", logits), ("log-softmax", logits.exp())):
        total = values.sum(1) if logits.ndim > 1 else values
        is_probability = bool((values >= 0).all()) and logits.ndim > 1 and logits.shape[1] > 1
        if is_probability and torch.allclose(total, torch.ones_like(total), atol=1e-3):
            return f"a {name}, so that its outputs are {name.replace('softmax', '')}probabilities"
    for out in made:
        if out.numel() == logits.numel() and is_same(out.sigmoid().view(logits.shape), logits):
            return "a sigmoid, so that its outputs are probabilities"
    return None
