"""Slow, obvious float64 references that several methods share; higher = more in-distribution."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import logsumexp

from skood.learning.keys import row_keys


def as_array(x):
    """Return `x` (array, tensor on any device, list) as a new float64 numpy array."""
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu().double().numpy()
    return np.array(x, dtype=np.float64)


def as_tensor(x):
    """Return `x` as a new float64 tensor on the CPU."""
    return torch.from_numpy(as_array(x))


def as_double(net):
    """Return a deep copy of `net` in float64 on the CPU, in eval mode, parameters trainable."""
    return copy.deepcopy(net).cpu().double().eval().requires_grad_(True)


def hook(net, layer, function, head_name):
    """Let `function` replace the output of `layer`; None: the input of the last linear layer."""
    if layer is None:
        head = net.get_submodule(head_name)
        return head.register_forward_pre_hook(lambda _, inputs: (function(inputs[0]),))
    return net.get_submodule(layer).register_forward_hook(lambda _, __, output: function(output))


def logits(net, X):
    """Run `net` on one sample at a time."""
    net = as_double(net)
    with torch.no_grad():
        return np.stack([as_array(net(x[None]))[0] for x in as_tensor(X)])


def features(net, X, layer=None, head_name="fc"):
    """Read the output of `layer`, unreduced; None: the input of the last linear layer."""
    net = as_double(net)
    rows = []

    def keep(output):
        rows.append(as_array(output)[0])
        return output

    handle = hook(net, layer, keep, head_name)
    with torch.no_grad():
        for x in as_tensor(X):
            net(x[None])
    handle.remove()
    return np.stack(rows)


def energy(logits):
    """Compute E = logsumexp(l) over axis 1."""
    return logsumexp(as_array(logits), axis=1)


def score_of_logits(logits, logit_score="energy"):
    """Score logits (n, C) or (n, C, H, W) over axis 1; a callable maps a tensor to scores."""
    if callable(logit_score):
        return as_array(logit_score(as_tensor(logits)))
    logits = as_array(logits)
    if logit_score == "energy":
        return energy(logits)
    if logit_score == "msp":
        return np.exp(logits.max(axis=1) - energy(logits))
    if logit_score == "max_logit":
        return logits.max(axis=1)
    raise ValueError(logit_score)


def uniform_loss(logits, loss="kl", temperature=1.0):
    """Compute the loss of one sample's logits (C,) against the uniform u = 1/C.

    "kl": KL(u || softmax(l/T)) = sum_c u (log u - log p_c). "bce": sum_c BCE(p_c, u). "ones":
    -sum_c log p_c.
    """
    n_classes = len(logits)
    u = torch.full_like(logits, 1 / n_classes)
    if loss == "kl":
        return (u * (u.log() - F.log_softmax(logits / temperature, dim=0))).sum()
    if loss == "bce":
        return F.binary_cross_entropy(F.softmax(logits / temperature, dim=0), u, reduction="sum")
    if loss == "ones":
        return -F.log_softmax(logits / temperature, dim=0).sum()
    raise ValueError(loss)


def normalised(H):
    """Divide each row by its Euclidean norm; zero rows stay zero."""
    return np.array([h / np.linalg.norm(h) if h.any() else h for h in as_array(H)])


def head_of(net, head_name="fc"):
    """Return weight and bias of the last linear layer."""
    head = as_double(net).get_submodule(head_name)
    return as_array(head.weight), as_array(head.bias)


def folds_of(X, n_folds=10):
    """Return the fold of each row."""
    return np.floor(n_folds * row_keys(torch.as_tensor(X)).numpy()).astype(int)


def subspace(H, center, n_components=None, **others):
    """Return the center and the leading directions, one a row, of rows around it; None: mean."""
    center = H.mean(0) if center is None else center
    scatter = np.zeros((H.shape[1],) * 2)
    for h in H:
        scatter += np.outer(h - center, h - center) / len(H)
    variances, directions = np.linalg.eigh(scatter)
    variances, directions = variances[::-1], directions.T[::-1]
    k = H.shape[1] // 2 if n_components is None else n_components
    if isinstance(k, float):
        k = next(i for i in range(1, len(H)) if variances[:i].sum() >= k * variances.sum())
    return center, directions[:k]


def residual_norm(h, center, leading):
    """Return the norm of what lies outside of the leading directions."""
    z = h - center
    return np.linalg.norm(z - sum((z @ direction) * direction for direction in leading))
