"""Pure torch functions that several detectors share."""

import torch

__all__ = [
    "at_least_float32",
    "clip_to",
    "energy",
    "kl_to_uniform_grad",
    "l1_norm",
    "max_logit",
    "msp",
    "pool",
]


def energy(logits: torch.Tensor) -> torch.Tensor:
    """Negative free energy of each sample, ``logsumexp`` over the classes.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes, ...)
        Unnormalised class scores.

    Returns
    -------
    energy : Tensor of shape (n_samples, ...)
        Higher means more in-distribution.

    References
    ----------
    Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020.

    Examples
    --------
    >>> import torch
    >>> from skood.functional import energy
    >>> energy(torch.tensor([[0.0, 0.0]]))
    tensor([0.6931])
    """
    return torch.logsumexp(logits, dim=1)


def msp(logits: torch.Tensor) -> torch.Tensor:
    """Maximum softmax probability of each sample.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes, ...)
        Unnormalised class scores.

    Returns
    -------
    probability : Tensor of shape (n_samples, ...)
        In (0, 1]; higher means more in-distribution.

    References
    ----------
    Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
    Examples in Neural Networks", ICLR 2017.
    """
    return torch.softmax(logits, dim=1).amax(dim=1)


def max_logit(logits: torch.Tensor) -> torch.Tensor:
    """Largest logit of each sample.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes, ...)
        Unnormalised class scores.

    Returns
    -------
    logit : Tensor of shape (n_samples, ...)
        Higher means more in-distribution.

    References
    ----------
    Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022.
    """
    return logits.amax(dim=1)


def kl_to_uniform_grad(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Gradient of KL(u || softmax(logits / temperature)) with respect to the logits.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Unnormalised class scores.
    temperature : float, default=1.0
        What the logits are divided by.

    Returns
    -------
    grad : Tensor of shape (n_samples, n_classes), dtype float64
        ``(softmax(logits / temperature) - 1 / n_classes) / temperature``.
    """
    # The largest logit goes first: logits / temperature alone may overflow. In float64, since
    # softmax and 1 / n_classes cancel at a large temperature (float32: 4e-4 at 1000).
    logits = logits.double()
    shifted = (logits - logits.amax(dim=1, keepdim=True)) / temperature
    return (torch.softmax(shifted, dim=1) - 1 / logits.shape[1]) / temperature


def all_finite(x: torch.Tensor) -> bool:
    """Tell whether a tensor holds neither NaN nor infinity.

    Both survive in the sum, which takes 3 % of the time of `torch.isfinite` and no memory; where
    finite values overflow it each is looked at.
    """
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def pool(activations: torch.Tensor, how: str | None = "avg") -> torch.Tensor:
    """Reduce the output of a layer to one vector a sample.

    Parameters
    ----------
    activations : Tensor of shape (n_samples, D), (n_samples, T, D) or (n_samples, C, H, W, ...)
        Vectors, tokens or maps.
    how : {"avg", "max", "token"} or None, default="avg"
        Average or maximum over positions, the first token, or no reduction.

    Returns
    -------
    features : Tensor of shape (n_samples, D) or (n_samples, C)
        Vectors stay as they are; with ``how=None`` everything does.

    Raises
    ------
    ValueError
        If the first token is asked of maps.
    """
    if how is None or activations.ndim == 2:
        return activations
    if how == "token":
        if activations.ndim != 3:
            raise ValueError(
                f"pool='token' needs tokens (n_samples, T, D), but the layer gives shape "
                f"{tuple(activations.shape)}. Use pool='avg' or pool='max'."
            )
        return activations[:, 0]
    positions = 1 if activations.ndim == 3 else tuple(range(2, activations.ndim))
    return activations.mean(positions) if how == "avg" else activations.amax(positions)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Cast half precision to float32: norms and sums need it.

    Parameters
    ----------
    tensor : Tensor
        Of any floating dtype.

    Returns
    -------
    tensor : Tensor
        float32 or float64.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def l1_norm(rows: torch.Tensor) -> torch.Tensor:
    """Sum of absolute values of each row.

    Parameters
    ----------
    rows : Tensor of shape (n_samples, D)
        Numbers.

    Returns
    -------
    norm : Tensor of shape (n_samples,), dtype float64
        Zero for rows of zeros alone.
    """
    return rows.abs().sum(1, dtype=torch.float64)


def clip_to(scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast scores to a dtype; what lies outside of its range becomes its largest value.

    Parameters
    ----------
    scores : Tensor
        Finite numbers.
    dtype : torch.dtype
        A floating dtype.

    Returns
    -------
    scores : Tensor of that dtype
        Finite numbers.
    """
    limit = min(torch.finfo(dtype).max, torch.finfo(scores.dtype).max)
    return scores.clamp(-limit, limit).to(dtype)
