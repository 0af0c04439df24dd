"""Pure torch functions that several detectors share."""

import torch

__all__ = [
    "at_least_float32",
    "clip_to",
    "energy",
    "entropy",
    "gen",
    "kl_to_uniform_grad",
    "log_odds",
    "log_probabilities",
    "max_logit",
    "msp",
    "pool",
    "power_sum",
    "radial",
    "tempered",
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


def tempered(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Subtract the largest logit of each sample and divide by a temperature, in float64.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes, ...)
        Unnormalised class scores.
    temperature : float, default=1.0
        What they are divided by; of the logits as they are the quotient might overflow.

    Returns
    -------
    logits : Tensor of shape (n_samples, n_classes, ...), dtype float64
        With the same softmax as logits / temperature; the largest is 0.
    """
    logits = logits.double()
    return (logits - logits.amax(dim=1, keepdim=True)) / temperature


def log_odds(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Log-odds of the maximum softmax probability of each sample, ``log(p / (1 - p))``.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes, ...)
        Unnormalised class scores.
    temperature : float, default=1.0
        What the logits are divided by.

    Returns
    -------
    odds : Tensor of shape (n_samples, ...), dtype float64
        Ranks as `msp` does where that has digits left: of p = 1 - 1e-20 it has none.

    Examples
    --------
    >>> import torch
    >>> from skood.functional import log_odds
    >>> log_odds(torch.tensor([[0.0, 90.0], [0.0, 100.0]]))
    tensor([ 90., 100.], dtype=torch.float64)
    """
    if logits.shape[1] == 1:
        return torch.zeros_like(logits[:, 0], dtype=torch.float64)
    others, _ = _without_largest(tempered(logits, temperature))
    return clip_to(-torch.logsumexp(others, dim=1), torch.float64)


def _without_largest(logits):
    """Return logits with minus infinity in place of the largest, and its column."""
    largest = logits.argmax(dim=1, keepdim=True)
    return logits.scatter(1, largest, -torch.inf), largest


def log_probabilities(
    logits: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of p and of 1 - p of each class, exact at any confidence.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes, ...)
        Unnormalised class scores.
    temperature : float, default=1.0
        What the logits are divided by.

    Returns
    -------
    log_p, log_rest : Tensor of shape (n_samples, n_classes, ...), dtype float64
        Of the softmax. 1 - p of the largest class is the sum of the others.
    """
    logits = tempered(logits, temperature)
    others, largest = _without_largest(logits)
    log_others = torch.logsumexp(others, dim=1, keepdim=True)
    log_total = log_others.exp().log1p()
    log_p = logits - log_total
    return log_p, (-log_p.exp()).log1p().scatter(1, largest, log_others - log_total)


def entropy(logits: torch.Tensor, temperature: float = 1.0, log: bool = True) -> torch.Tensor:
    """Minus the (logarithm of the) entropy of the softmax of each sample.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes, ...)
        Unnormalised class scores.
    temperature : float, default=1.0
        What the logits are divided by.
    log : bool, default=True
        The same ranking, without the ties of confident samples, whose entropy rounds to 0.

    Returns
    -------
    score : Tensor of shape (n_samples, ...), dtype float64
        Higher means more in-distribution.
    """
    if logits.shape[1] == 1:
        return torch.zeros_like(logits[:, 0], dtype=torch.float64)
    log_p, log_rest = log_probabilities(logits, temperature)
    # Of the largest p -log p is 1 - p where that is too small for log p to hold it.
    terms = log_p + torch.where(log_rest < -40, log_rest, (-log_p).log())
    score = clip_to(-torch.logsumexp(terms, dim=1), torch.float64)
    return score if log else -(-score).exp()


def gen(
    logits: torch.Tensor,
    gamma: float = 0.1,
    n_classes: int = 100,
    temperature: float = 1.0,
    log: bool = True,
) -> torch.Tensor:
    """Minus the (logarithm of the) generalised entropy of the softmax of each sample.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes, ...)
        Unnormalised class scores.
    gamma : float, default=0.1
        The entropy is the sum of ``(p * (1 - p)) ** gamma``.
    n_classes : int, default=100
        Over so many of the largest p, or over all.
    temperature : float, default=1.0
        What the logits are divided by.
    log : bool, default=True
        The same ranking, without the ties of confident samples.

    Returns
    -------
    score : Tensor of shape (n_samples, ...), dtype float64
        Higher means more in-distribution.

    References
    ----------
    Liu et al., "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection", CVPR
    2023.
    """
    if logits.shape[1] == 1:
        return torch.zeros_like(logits[:, 0], dtype=torch.float64)
    log_p, log_rest = log_probabilities(logits, temperature)
    terms = gamma * (log_p + log_rest)
    if n_classes < logits.shape[1]:
        # By p, not by term: of two classes both terms are equal.
        terms = terms.gather(1, log_p.topk(n_classes, dim=1).indices)
    score = clip_to(-torch.logsumexp(terms, dim=1), torch.float64)
    return score if log else -(-score).exp()


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
    # In float64, since softmax and 1 / n_classes cancel at a large temperature (float32: 4e-4 at
    # 1000).
    p = torch.softmax(tempered(logits, temperature), dim=1)
    return (p - 1 / logits.shape[1]) / temperature


def all_finite(x: torch.Tensor) -> bool:
    """Tell whether a tensor holds neither NaN nor infinity.

    Both survive in the sum, which takes 3 % of the time of `torch.isfinite` and no memory; where
    finite values overflow it each is looked at.
    """
    return abs(float(x.sum())) < torch.inf or bool(torch.isfinite(x).all())


def pool(
    activations: torch.Tensor,
    how: str | None = "avg",
    *,
    channel_axis: int | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Reduce the output of a layer to one vector a sample.

    Parameters
    ----------
    activations : Tensor of shape (n_samples, D), (n_samples, T, D) or (n_samples, C, H, W, ...)
        Vectors, tokens or maps.
    how : {"avg", "max", "sum", "token"} or None, default="avg"
        Average, maximum or sum over positions, the first token, or no reduction.
    channel_axis : int, default=None
        The axis that stays; the other axes but the first are positions. None: the last one of
        three, else the second.
    mask : Tensor of shape (n_samples, T), default=None
        Zero for tokens that are padding and do not count. It applies where one axis of positions
        is of this length.

    Returns
    -------
    features : Tensor of shape (n_samples, D) or (n_samples, C)
        Vectors stay as they are; with ``how=None`` everything does.

    Raises
    ------
    ValueError
        If the first token is asked of maps.

    Examples
    --------
    >>> import torch
    >>> from skood.functional import pool
    >>> tokens = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]])
    >>> pool(tokens, mask=torch.tensor([[1, 1, 0]]))
    tensor([[2., 3.]])
    """
    ndim = activations.ndim
    if how is None or ndim == 2:
        return activations
    if channel_axis is None:
        channel_axis = -1 if ndim == 3 else 1
    if channel_axis % ndim == 0:
        raise ValueError(f"channel_axis={channel_axis} is the axis of the samples.")
    positions = tuple(axis for axis in range(1, ndim) if axis != channel_axis % ndim)
    counts = counting_positions(activations.shape, positions, mask)
    if how == "token":
        if positions != (1,):
            raise ValueError(
                f"pool='token' needs tokens (n_samples, T, D), but the layer gives shape "
                f"{tuple(activations.shape)}. Use pool='avg' or pool='max'."
            )
        if counts is None:
            return activations[:, 0]
        # Texts may be padded on the left.
        return activations.take_along_dim(counts.int().argmax(1, keepdim=True), 1)[:, 0]
    if how == "max":
        if counts is not None:
            activations = activations.masked_fill(~counts, -torch.inf)
        return activations.amax(positions)
    reduce = torch.mean if how == "avg" else torch.sum
    if counts is None:
        return reduce(activations, positions)
    dtype = torch.promote_types(activations.dtype, torch.float32)
    reduced = reduce(activations.where(counts, 0), positions, dtype=dtype)
    return reduced / counts.to(dtype).mean(positions) if how == "avg" else reduced


def counting_positions(shape, positions, mask):
    """Return a mask of tokens as a bool tensor that broadcasts to a shape; None if it does not."""
    if mask is None or mask.ndim != 2:
        return None
    tokens = [axis for axis in positions if shape[axis] == mask.shape[1]]
    if len(tokens) != 1 or shape[0] != mask.shape[0]:
        return None
    counts = mask != 0
    # Of a row without any token all count: there is no average of none.
    counts = counts | ~counts.any(1, keepdim=True)
    sizes = (mask.shape[1] if axis in tokens else 1 for axis in range(1, len(shape)))
    return counts.view(-1, *sizes)


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


def power_sum(rows: torch.Tensor, order: int = 1) -> torch.Tensor:
    """Sum of a power of the absolute values of each row.

    Parameters
    ----------
    rows : Tensor of shape (n_samples, D)
        Numbers.
    order : {1, 2}, default=1
        1 gives the L1 norm, 2 the square of the L2 norm.

    Returns
    -------
    total : Tensor of shape (n_samples,), dtype float64
    """
    rows = rows.abs() if order == 1 else rows.double().square()
    return rows.sum(1, dtype=torch.float64)


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


def radial(rows: torch.Tensor, power: float, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Divide rows by a power of their length.

    Parameters
    ----------
    rows : Tensor of shape (n_samples, ..., D)
        Vectors. The square of their length may overflow or underflow.
    power : float
        0 leaves them, 1 gives them length 1.
    dtype : torch.dtype, default=None
        Of the result, and in which to compute: none narrower than that of the rows. None: theirs.

    Returns
    -------
    rows : Tensor of shape (n_samples, ..., D)
        Zero rows stay zero.

    Examples
    --------
    >>> import torch
    >>> from skood.functional import radial
    >>> radial(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 1)
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    # Squares of float32 neither overflow float64 nor underflow.
    squares_fit = dtype == torch.float64 != rows.dtype and not torch.compiler.is_exporting()
    rows = rows if dtype is None else rows.to(dtype)
    if power == 0:
        return rows
    # Where everything is below the smallest normal number a division would give inf. In ONNX the
    # smallest of float64 is 0.
    tiny = torch.finfo(torch.float32 if torch.compiler.is_exporting() else rows.dtype).tiny
    if squares_fit or (rows.device.type == "cpu" and not torch.compiler.is_exporting()):
        norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        # Squares are far from both ends: half of the time.
        if squares_fit or bool(((norm > 1e3 * tiny**0.5) & (norm < 1e-3 * tiny**-0.5)).all()):
            # Of a zero row it is 0, and so may be the power of a smallest number.
            return rows / (norm if power == 1 else norm**power).clamp(min=tiny)
    size = rows.abs().amax(-1, keepdim=True).clamp(min=tiny)
    scaled = rows / size
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    unit = scaled / norm.clamp(min=tiny)
    return unit if power == 1 else unit * (size * norm).clamp(min=tiny) ** (1 - power)
