"""Slow, obvious float64 references of the five methods; higher = more in-distribution."""

import copy
import decimal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit, logsumexp
from scipy.stats import multivariate_normal


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


# ASH


def ash_shape(x, variant="s", percentile=0.65, max_ratio=np.inf):
    """Shape one sample's activation: keep its k = max(1, n - round(n * percentile)) largest.

    P: kept as they are. B: each becomes s1/k. S: times exp(s1/s2); s1 and s2 are the sums before
    and after pruning. Ties go to the lowest flat index and 0/0 counts as 0. METHODS clips s1/s2 by
    bounds that depend on the dtype and on what follows; here `max_ratio` is that bound, and by
    default there is none, so s2 = 0 alone gives an infinite ratio.
    """
    x = as_array(x)
    flat = x.ravel()
    n = len(flat)
    k = max(1, n - int(np.round(n * percentile)))
    kept = np.argsort(-flat, kind="stable")[:k]
    shaped = np.zeros(n)
    shaped[kept] = flat[kept]
    s1, s2 = flat.sum(), shaped.sum()
    if variant == "b":
        shaped[kept] = s1 / k
    elif variant == "s":
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            ratio = 0.0 if s1 == 0 and s2 == 0 else s1 / s2
            shaped[kept] *= np.exp(np.clip(ratio, -max_ratio, max_ratio))
    elif variant != "p":
        raise ValueError(variant)
    return shaped.reshape(x.shape)


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


def ash_scores(
    activations, rest, variant="s", percentile=0.65, logit_score="energy", max_ratio=np.inf
):
    """Score the logits that `rest` gives for the shaped activations, one sample at a time.

    `rest` is a module (copied to float64) or a callable that takes float64 tensors. Logits that
    are maps (n, C, H, W) give scores (n, H, W).
    """
    if isinstance(rest, torch.nn.Module):
        rest = as_double(rest)
    scores = []
    for x in as_array(activations):
        shaped = as_tensor(ash_shape(x, variant, percentile, max_ratio))
        with torch.no_grad():
            scores.append(score_of_logits(rest(shaped[None]), logit_score)[0])
    return np.stack(scores)


def ash_network(
    net,
    X,
    layer=None,
    variant="s",
    percentile=0.65,
    logit_score="energy",
    max_ratio=np.inf,
    head_name="fc",
):
    """Run `net` on one sample at a time with the output of `layer` shaped, and score its logits."""
    net = as_double(net)

    def shape(output):
        return as_tensor(ash_shape(output[0], variant, percentile, max_ratio))[None]

    handle = hook(net, layer, shape, head_name)
    with torch.no_grad():
        scores = [score_of_logits(net(x[None]), logit_score)[0] for x in as_tensor(X)]
    handle.remove()
    return np.stack(scores)


# GradNorm


def uniform_loss(logits, loss="kl", temperature=1.0):
    """Compute the loss of one sample's logits (C,) against the uniform u = 1/C.

    "kl": KL(u || softmax(l/T)) = sum_c u (log u - log p_c). "bce": sum_c BCE(p_c, u).
    """
    n_classes = len(logits)
    u = torch.full_like(logits, 1 / n_classes)
    if loss == "kl":
        return (u * (u.log() - F.log_softmax(logits / temperature, dim=0))).sum()
    if loss == "bce":
        return F.binary_cross_entropy(F.softmax(logits / temperature, dim=0), u, reduction="sum")
    raise ValueError(loss)


def gradnorm_head(H, W, b, loss="kl", temperature=1.0):
    """Compute ||dL/dW||_1 of each row by autograd through the head h W^T + b.

    With "bce" only for logit gaps below 25 times the temperature; beyond, multiply the L1 norm of
    `gradnorm_bce_exact` by ||h||_1.
    """
    W, b = as_tensor(W).requires_grad_(), as_tensor(b)
    scores = []
    for h in as_tensor(H):
        (gradient,) = torch.autograd.grad(uniform_loss(W @ h + b, loss, temperature), W)
        scores.append(gradient.abs().sum().item())
    return np.array(scores)


def gradnorm(net, X, names=None, loss="kl", temperature=1.0):
    """Compute sum_names ||dL/dparameter||_1 by autograd, one sample at a time; None: all names.

    A parameter that the logits do not depend on counts as 0, and a shared one counts once, with
    the sum of its gradients. With "bce" only for logit gaps below 25 times the temperature.
    """
    net = as_double(net)
    parameters = dict(net.named_parameters())
    chosen = [parameters[name] for name in (parameters if names is None else names)]
    scores = []
    for x in as_tensor(X):
        # Beside a copy: gradients of one row alone through BatchNorm2d may be wrong (torch 2.13).
        value = uniform_loss(net(torch.stack([x, x]))[0], loss, temperature)
        gradients = torch.autograd.grad(value, chosen, allow_unused=True)
        scores.append(sum(g.abs().sum().item() for g in gradients if g is not None))
    return np.array(scores)


def gradnorm_bce_exact(logits, temperature=1.0):
    """Compute the gradient (n, C) of the "bce" loss with respect to the logits in 60 digits.

    The chain rule sum_c dL/dp_c dp_c/dl_k with dL/dp_c = -u/p_c + (1 - u)/(1 - p_c), where 1 - p_c
    is the sum of the other probabilities. One class alone has gradient 0.
    """
    rows = []
    with decimal.localcontext(
        decimal.Context(prec=60, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)
    ):
        one, T = decimal.Decimal(1), decimal.Decimal(float(temperature))
        for row in as_array(logits):
            scaled = [decimal.Decimal(value) / T for value in row.tolist()]
            classes = range(len(scaled))
            powers = [(value - max(scaled)).exp() for value in scaled]
            total = sum(powers)
            p = [power / total for power in powers]
            others = [sum(p[j] for j in classes if j != c) for c in classes]
            u = one / len(scaled)
            slope = [
                -u / p[c] + (one - u) / others[c] if len(scaled) > 1 else 0 * one for c in classes
            ]
            rows.append(
                [
                    sum(slope[c] * p[c] * (others[c] if c == k else -p[k]) for c in classes) / T
                    for k in classes
                ]
            )
    return np.array(rows, dtype=np.float64)


# NNGuide


def normalised(H):
    """Divide each row by its Euclidean norm; zero rows stay zero."""
    return np.array([h / np.linalg.norm(h) if h.any() else h for h in as_array(H)])


def nnguide(H_train, E_train, H, E, k=10, energy_weighted=True):
    """Score G(x) E(x), G = mean of the k largest inner products of h/||h|| with the bank.

    The bank holds h_i/||h_i|| times E_i, or without `energy_weighted` alone. `k` larger than the
    bank means the whole bank.
    """
    bank = normalised(H_train)
    if energy_weighted:
        bank = np.array([h * e for h, e in zip(bank, as_array(E_train), strict=True)])
    scores = []
    for h, e in zip(normalised(H), as_array(E), strict=True):
        products = np.array([h @ row for row in bank])
        scores.append(np.sort(products)[::-1][:k].mean() * e)
    return np.array(scores)


def nnguide_leave_one_out(H_train, E_train, k=10, energy_weighted=True):
    """Score each training row with a bank that lacks it; `k` is not reduced otherwise."""
    H, E = as_array(H_train), as_array(E_train)
    scores = []
    for i in range(len(H)):
        others = np.arange(len(H)) != i
        scores.append(nnguide(H[others], E[others], H[[i]], E[[i]], k, energy_weighted)[0])
    return np.array(scores)


# NAC-UE


def nac_products_features(H, W, b):
    """Compute h * dKL(u || p)/dh of each row (n, D) by autograd through the head h W^T + b."""
    W, b = as_tensor(W), as_tensor(b)
    rows = []
    for h in as_tensor(H):
        h.requires_grad_()
        (gradient,) = torch.autograd.grad(uniform_loss(W @ h + b), h)
        rows.append(as_array(h) * as_array(gradient))
    return np.stack(rows)


def nac_pool(z, gradient, pooling="separate"):
    """Reduce one sample's output and gradient, (N,), (T, N) or (N, H, W), to one product a neuron.

    "separate": the sum over places of each, then the product. "product": the mean over H, W of
    the product, and (T, N) flattened. More than two places' axes are treated as H, W.
    """
    if z.ndim == 1:
        return z * gradient
    if pooling == "separate":
        places = 0 if z.ndim == 2 else tuple(range(1, z.ndim))
        return z.sum(axis=places) * gradient.sum(axis=places)
    if pooling == "product":
        product = z * gradient
        return product.ravel() if z.ndim == 2 else product.mean(axis=tuple(range(1, z.ndim)))
    raise ValueError(pooling)


def nac_products(net, X, layers=(None,), pooling="separate", head_name="fc", masks=None):
    """Compute pooled z * dKL(u || p)/dz, a list of (n, N), by autograd, one sample at a time.

    Masks (n, T) are zero for the tokens that are left out.

    A layer's z is what it returns, before an in-place operation that follows overwrites it; of a
    layer that is called twice, the last call's. None: the input of the last linear layer.
    """
    net = as_double(net)
    kept = {}

    def keep_as(i):
        def keep(output):
            kept[i] = output
            return output.clone()

        return keep

    handles = [hook(net, layer, keep_as(i), head_name) for i, layer in enumerate(layers)]
    products = [[] for _ in layers]
    for i, x in enumerate(as_tensor(X)):
        places = slice(None) if masks is None else as_array(masks[i]) != 0
        value = uniform_loss(net(x[None].requires_grad_().clone())[0])
        outputs = [kept[i] for i in range(len(layers))]
        gradients = torch.autograd.grad(value, outputs, allow_unused=True)
        for rows, z, gradient in zip(products, outputs, gradients, strict=True):
            gradient = torch.zeros_like(z) if gradient is None else gradient
            z, gradient = (as_array(tensor)[0][places] for tensor in (z, gradient))
            rows.append(nac_pool(z, gradient, pooling))
    for handle in handles:
        handle.remove()
    return [np.stack(rows) for rows in products]


def nac_auto_alpha(product, n_bins=50, bins="log"):
    """Find the first spread over the std of all products that is steep enough, else the last.

    Steep enough: at most half of the rows are in less covered bins than they would be with a
    quarter of their products. 1 if all products are equal.
    """
    product = as_array(product)
    if product.std() == 0:
        return 1.0
    for spread in {"log": [1, 2, 6], "geometric": [12, 24, 72]}[bins]:
        alpha = spread / product.std()
        o_star = nac_auto_o_star(len(product), n_bins)
        coverage = np.minimum(nac_counts(product, alpha, n_bins, bins) / o_star, 1)
        sure, doubted = (
            coverage[np.arange(len(coverage)), nac_bins(nac_states(p, alpha), n_bins, bins)]
            for p in (product, product / 4)
        )
        worse = [a.mean() < b.mean() - 1e-6 for a, b in zip(sure, doubted, strict=True)]
        if np.mean(worse) <= 0.5:
            break
    return alpha


def nac_auto_o_star(n, n_bins):
    """Compute max(1, n / n_bins), not rounded."""
    return max(1.0, n / n_bins)


def nac_states(product, alpha):
    """Compute the neurons' states sigmoid(alpha * product), in [0, 1]."""
    return expit(alpha * as_array(product))


def nac_edges(bins="log", n_bins=50):
    """List the edges of the bins of [0, 1].

    "log": with m = n_bins // 2, the logarithm to base 1000 of m points evenly spaced in
    [1, sqrt(1000)] without the last, then 1 minus all of them backwards, 0.01 added to the last,
    then 1.2. "geometric": n_bins // 2 + 1 points geometric from 1e-6 to 0.5, the last lowered to
    the float32 number below 0.5, then 1 minus the others backwards.
    """
    m = n_bins // 2
    if bins == "log":
        if n_bins % 2 or n_bins < 4:
            raise ValueError("n_bins must be even and at least 4")
        left = [np.log(x) / np.log(1000) for x in np.linspace(1, np.sqrt(1000), m)]
        right = [1 - edge for edge in reversed(left)]
        right[-1] += 0.01
        return np.array([*left[:-1], *right, 1.2])
    if bins == "geometric":
        left = [1e-6 * (0.5 / 1e-6) ** (i / m) for i in range(m)]
        return np.array([*left, 0.5 - 2.0**-25, *(1 - edge for edge in reversed(left))])
    raise ValueError(bins)


def nac_bins(states, n_bins=50, bins="log"):
    """Find the bin of each state: [a, b) for "log"; (a, b] for "geometric".

    For "geometric", states are first clamped to [1e-6, 1 - 1e-6], and the first bin has its lower
    edge too. The edges are one more than the bins only if n_bins is even: for an odd n_bins the
    last bin stays empty.
    """
    edges = nac_edges(bins, n_bins)
    states = as_array(states)
    found = np.full(states.shape, -1)
    if bins == "geometric":
        states = np.clip(states, 1e-6, 1 - 1e-6)
        found[states <= edges[0]] = 0
    for j in range(len(edges) - 1):
        a, b = edges[j], edges[j + 1]
        inside = (a <= states) & (states < b) if bins == "log" else (a < states) & (states <= b)
        found[inside] = j
    assert (found >= 0).all()
    return found


def nac_counts(product, alpha, n_bins=50, bins="log"):
    """Count, for each neuron and bin, the rows whose state falls there; shape (N, bins)."""
    found = nac_bins(nac_states(product, alpha), n_bins, bins)
    counts = np.zeros((found.shape[1], len(nac_edges(bins, n_bins)) - 1))
    for neuron in range(counts.shape[0]):
        for j in range(counts.shape[1]):
            counts[neuron, j] = np.sum(found[:, neuron] == j)
    return counts


def nac_settings(products_train, alpha, o_star, n_bins, bins):
    """List (alpha, o_star, n_bins) of each layer; each given once, one per layer, or "auto"."""
    settings = []
    for i, product in enumerate(products_train):
        a, o, m = (
            value[i] if isinstance(value, list | tuple | np.ndarray) else value
            for value in (alpha, o_star, n_bins)
        )
        a = nac_auto_alpha(product, m, bins) if isinstance(a, str) else a
        o = nac_auto_o_star(len(product), m) if isinstance(o, str) else o
        settings.append((a, o, m))
    return settings


def nac_scores(products_train, products, alpha="auto", o_star="auto", n_bins=50, bins="log"):
    """Average the coverage min(count / o_star, 1) over neurons, then over layers.

    "auto" uses all training rows, and their number, as the pilot sample.
    """
    settings = nac_settings(products_train, alpha, o_star, n_bins, bins)
    scores = np.zeros((len(products[0]), len(products)))
    for i, (train, test) in enumerate(zip(products_train, products, strict=True)):
        a, o, m = settings[i]
        counts = nac_counts(train, a, m, bins)
        found = nac_bins(nac_states(test, a), m, bins)
        for row in range(found.shape[0]):
            coverage = [min(counts[neuron, j] / o, 1.0) for neuron, j in enumerate(found[row])]
            scores[row, i] = np.mean(coverage)
    return scores.mean(axis=1)


def nac_leave_one_out(products, alpha="auto", o_star="auto", n_bins=50, bins="log"):
    """Score each training row by counts that lack it; "auto" is settled once, on all rows."""
    products = [as_array(product) for product in products]
    settings = nac_settings(products, alpha, o_star, n_bins, bins)
    alphas, o_stars, bin_numbers = (list(values) for values in zip(*settings, strict=True))
    n = len(products[0])
    scores = []
    for i in range(n):
        others = [product[np.arange(n) != i] for product in products]
        row = [product[[i]] for product in products]
        scores.append(nac_scores(others, row, alphas, o_stars, bin_numbers, bins)[0])
    return np.array(scores)


# Class-conditional Gaussians


def gmm_auto_reg_covar(Z, y=None):
    """Compute 0.01 * (total within-class sum of squares) / (n D)."""
    Z = as_array(Z)
    y = np.zeros(len(Z)) if y is None else np.asarray(y)
    squares = 0.0
    for label in np.unique(y):
        rows = Z[y == label]
        squares += ((rows - rows.mean(axis=0)) ** 2).sum()
    return 0.01 * squares / Z.size


def gmm_fit(Z, y=None, covariance_type="full", reg_covar="auto"):
    """Fit one Gaussian per class: mean, covariance (divided by n_k) + reg_covar I, weight n_k/n.

    "tied": sum_k (n_k/n) Sigma_k. "diag": its diagonal. "spherical": the mean of the variances.
    y=None: one Gaussian. `reg_covar` is added whatever the type, and nothing else is done about
    singular covariances. Returns classes, weights (K,), means (K, D) and covariances (K, D, D).
    """
    Z = as_array(Z)
    n, D = Z.shape
    y = np.zeros(n) if y is None else np.asarray(y)
    reg_covar = gmm_auto_reg_covar(Z, y) if isinstance(reg_covar, str) else reg_covar
    classes = np.unique(y)
    weights, means, covariances = [], [], []
    for label in classes:
        rows = Z[y == label]
        mean = rows.mean(axis=0)
        covariance = np.zeros((D, D))
        for row in rows:
            covariance += np.outer(row - mean, row - mean) / len(rows)
        weights.append(len(rows) / n)
        means.append(mean)
        covariances.append(covariance)
    if covariance_type == "tied":
        pooled = sum(w * covariance for w, covariance in zip(weights, covariances, strict=True))
        covariances = [pooled for _ in classes]
    elif covariance_type == "diag":
        covariances = [np.diag(np.diag(covariance)) for covariance in covariances]
    elif covariance_type == "spherical":
        covariances = [np.diag(covariance).mean() * np.eye(D) for covariance in covariances]
    elif covariance_type != "full":
        raise ValueError(covariance_type)
    return {
        "classes": classes,
        "weights": np.array(weights),
        "means": np.array(means),
        "covariances": np.array(covariances) + reg_covar * np.eye(D),
        "reg_covar": float(reg_covar),
    }


def gmm_scores(fit, Z, criterion="log_likelihood"):
    """Score log sum_k pi_k N(z | mu_k, Sigma_k); or -min_k Mahalanobis^2 / D ("mahalanobis")."""
    scores = []
    for z in as_array(Z):
        values = []
        for weight, mean, covariance in zip(
            fit["weights"], fit["means"], fit["covariances"], strict=True
        ):
            if criterion == "log_likelihood":
                values.append(np.log(weight) + multivariate_normal.logpdf(z, mean, covariance))
            elif criterion == "mahalanobis":
                values.append((z - mean) @ np.linalg.solve(covariance, z - mean) / len(z))
            else:
                raise ValueError(criterion)
        scores.append(logsumexp(values) if criterion == "log_likelihood" else -min(values))
    return np.array(scores)


def gmm_leave_one_out(
    Z, y=None, covariance_type="full", reg_covar="auto", criterion="log_likelihood"
):
    """Score each row by a fit that lacks it; "auto" is settled once, on all rows.

    A class of one row is gone when that row is left out; all weights are refitted too.
    """
    Z = as_array(Z)
    y = np.zeros(len(Z)) if y is None else np.asarray(y)
    reg_covar = gmm_auto_reg_covar(Z, y) if isinstance(reg_covar, str) else reg_covar
    scores = []
    for i in range(len(Z)):
        others = np.arange(len(Z)) != i
        fit = gmm_fit(Z[others], y[others], covariance_type, reg_covar)
        scores.append(gmm_scores(fit, Z[[i]], criterion)[0])
    return np.array(scores)
