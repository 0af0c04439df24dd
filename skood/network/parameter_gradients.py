"""Norms of per-sample gradients with respect to a network's parameters."""

import threading
from collections import Counter
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from skood.functional import at_least_float32, clip_to, power_sum
from skood.network.layers import _Hooked, first_argument, paired
from skood.network.modules import differentiable_copy

# So much of one layer's per-sample gradients is alive at once by rule: 512 KiB stay in cache.
BLOCK_ELEMENTS = 2**17
# Larger matrices are made in blocks of rows (512 × 4608, 4 positions: .7 against 1.3 ms a sample),
# which slows down smaller ones (256 × 2304: .34 against .30).
LARGE_MATRIX = 2**21
# With more a convolution makes a convolution's faster than a product with windows (16 × 16 and 256
# channels: 2.0 against 3.7 ms a sample), with fewer it is slower (2 × 2 and 512: 5.8 against 0.9).
FEW_POSITIONS = 64
# What a pass by rule keeps for its way back, and what vmap makes of gradients.
MICRO_BATCH_BYTES = 128 * 2**20
VMAP_ROWS = 32


# A rule maps an order, a layer, the number of samples n, what entered it and the gradient of what
# left it to the norms of the gradients of one parameter: L1 norms with the order 1, squares of L2
# norms with 2. Tensors hold n rows, or n times as many in order.


def norm_in_blocks(sums, size, *tensors):
    """Norms of matrices of a size, whose rows' norms a function makes of blocks of samples."""
    blocks = zip(*(t.split(max(1, BLOCK_ELEMENTS // size)) for t in tensors), strict=True)
    return torch.cat([power_sum(sums(*block)) for block in blocks])


def row_sums(order, gradients):
    """Norms of the rows, in their own dtype: all in float64 take five times as long."""
    return (gradients.abs_() if order == 1 else gradients.square_()).flatten(2).sum(2)


def product_sums(order, left, right):
    """Norms of the rows of products of matrices, (n, M, K) and (n, K, N)."""
    n_rows, n_columns = left.shape[1], right.shape[2]
    if n_rows * n_columns > LARGE_MATRIX:
        n_rows = max(1, BLOCK_ELEMENTS // n_columns)
    return torch.cat([row_sums(order, part @ right) for part in left.split(n_rows, 1)], 1)


def linear_weight(order, layer, n, x, grad):
    """Σ|Σ_t g_t x_tᵀ| over tokens t; for one token ‖g‖₁ ‖x‖₁."""
    x = at_least_float32(x).reshape(n, -1, layer.in_features)
    grad = grad.reshape(n, -1, layer.out_features)
    if x.shape[1] == 1:
        return power_sum(x[:, 0], order) * power_sum(grad[:, 0], order)
    sums = lambda x, g: product_sums(order, g.mT, x)  # noqa: E731
    return norm_in_blocks(sums, layer.weight.numel(), x, grad)


def conv_weight(order, layer, n, x, grad):
    """Σ|Σ_t g_t x_tᵀ| over windows t."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(at_least_float32(x), layer._reversed_padding_repeated_twice, mode)
    few = layer.groups == 1 and grad[0, 0].numel() <= FEW_POSITIONS
    sums = partial(by_windows if few else by_convolution, order, layer)
    # A sample may be several images, such as the frames of a film.
    x, grad = (tensor.unflatten(0, (n, -1)) for tensor in (x, grad))
    return norm_in_blocks(sums, layer.weight.numel(), x, grad)


def by_windows(order, layer, x, grad):
    """Norms of rows of a convolution's weight's gradients, as of a linear layer on windows."""
    axes = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    for axis, (size, step, gap) in enumerate(axes, start=3):
        x = x.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    windows = x.movedim(2, axis).reshape(len(x), grad[0, :, 0].numel(), -1)
    return product_sums(order, grad.movedim(2, 1).flatten(2), windows)


def by_convolution(order, layer, x, grad):
    """Do the same by a convolution with the samples as groups."""
    n = len(x)
    of_weight = getattr(nn.grad, f"conv{len(layer.kernel_size)}d_weight")
    shape = (n * layer.out_channels, *layer.weight.shape[1:])
    # The images of a sample are the batch, over which a convolution sums.
    x, grad = (tensor.transpose(0, 1).flatten(1, 2) for tensor in (x, grad))
    weight = of_weight(x, shape, grad, layer.stride, 0, layer.dilation, n * layer.groups)
    return row_sums(order, weight.unflatten(0, (n, -1)))


def token_bias(order, layer, n, x, grad):
    """Σ|Σ_t g_t|, features last."""
    return power_sum(grad.reshape(n, -1, layer.bias.numel()).sum(1), order)


def channel_sums(order, n, grad):
    """Σ|Σ_t g_t| over the positions t of all images of a sample, channels first."""
    sums = grad.reshape(n, -1, grad.shape[1], grad[0, 0].numel()).sum((1, 3))
    return power_sum(sums, order)


def channel_bias(order, layer, n, x, grad):
    """Σ|Σ_t g_t|, channels first."""
    return channel_sums(order, n, grad)


def batch_norm_weight(order, layer, n, x, grad):
    """Σ|Σ_t g_t x̂_t|, with x̂ what the weight multiplies."""
    x = F.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)
    return channel_sums(order, n, x * grad)


def group_norm_weight(order, layer, n, x, grad):
    """As for BatchNorm."""
    x = F.group_norm(x, layer.num_groups, eps=layer.eps)
    return channel_sums(order, n, x * grad)


def layer_norm_weight(order, layer, n, x, grad):
    """As for BatchNorm."""
    x = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    return power_sum((x * grad).reshape(n, -1, layer.weight.numel()).sum(1), order)


def embedding_weight(order, layer, n, ids, grad):
    """Σ_v |Σ_t g_t| over the tokens t with id v."""
    size = layer.num_embeddings
    of_sample = size * torch.arange(n, device=ids.device)[:, None]
    keys, where = (ids.reshape(n, -1) + of_sample).unique(return_inverse=True)
    grad = grad.reshape(-1, layer.embedding_dim)
    sums = grad.new_zeros(len(keys), grad.shape[1]).index_add_(0, where.ravel(), grad)
    norms = power_sum(sums, order)
    if layer.padding_idx is not None:
        norms[keys % size == layer.padding_idx] = 0
    return norms.new_zeros(n).index_add_(0, keys // size, norms)


RULES: dict = {
    nn.Linear: {"weight": linear_weight, "bias": token_bias},
    nn.LayerNorm: {"weight": layer_norm_weight, "bias": token_bias},
    nn.GroupNorm: {"weight": group_norm_weight, "bias": channel_bias},
    nn.Embedding: {"weight": embedding_weight},
    **dict.fromkeys(
        (nn.Conv1d, nn.Conv2d, nn.Conv3d), {"weight": conv_weight, "bias": channel_bias}
    ),
    **dict.fromkeys(
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
        {"weight": batch_norm_weight, "bias": channel_bias},
    ),
}


class _Tap(torch.autograd.Function):
    """Pass on a layer's output, and hand its gradient and the layer's input to a function.

    Both are those at the time of the call, whatever in-place operations follow: the gradient is
    taken at this node of the graph, and autograd refuses a saved input that was written to.
    """

    @staticmethod
    def forward(ctx, output, x, anchor, receive):
        # The anchor needs a gradient, so that this node is in the graph, frozen as the weights are.
        ctx.mark_dirty(output)
        ctx.save_for_backward(x)
        ctx.receive = receive
        return output

    @staticmethod
    def backward(ctx, grad):
        ctx.receive(*ctx.saved_tensors, at_least_float32(grad))
        return grad, None, None, None


class NormsByRule(_Hooked):
    """Inputs → norms of each sample's gradients, by one forward and one backward pass.

    Parameters
    ----------
    network : nn.Module
        A private copy, for this alone.
    names : iterable of str
        The parameters. `names` holds those of them that have a rule and one owner.
    logits_grad : callable
        Maps logits to the gradient of the loss with respect to them.
    order : int
        1 for L1 norms, 2 for squares of L2 norms.
    """

    def __init__(self, network, names, logits_grad, order):
        super().__init__(network)
        self.logits_grad, self.order = logits_grad, order
        self.names = set()
        owners = Counter(id(p) for part in network.modules() for p in part._parameters.values())
        for path, layer in network.named_modules():
            rules = {}
            for key, rule in RULES.get(type(layer), {}).items():
                name = f"{path}.{key}".removeprefix(".")
                if name in names and owners[id(getattr(layer, key))] == 1:
                    rules[name] = rule
            if rules:
                self.names.update(rules)
                layer.register_forward_hook(partial(self._hook, rules), with_kwargs=True)

    def _hook(self, rules, layer, args, kwargs, output):
        chosen = rules.keys() & self.names
        if not chosen:
            return None
        norms, n_samples, x = self._calls.seen, self._calls.n_samples, first_argument(args, kwargs)
        if len(output) == 1:
            # Of no sample yet, such as embeddings of positions: each sample gets its own.
            x, output = (t.expand(n_samples, *t.shape[1:]).clone() for t in (x, output))

        def receive(x, grad):
            for name in chosen:
                # The gradients of two calls would have to be summed before the norm.
                again = name in norms
                norm = rules[name](self.order, layer, n_samples, x, grad)
                norms[name] = norm * (torch.nan if again else 1)

        anchor = torch.empty(0, requires_grad=True)
        return _Tap.apply(output, x, anchor, receive)

    def forward(self, x):
        """Return a dict of norms; without parameters that the logits do not depend on here."""
        n_samples = len(tree_leaves(x)[0])
        x = paired(x)
        with torch.enable_grad(), self._recording(x) as norms:
            self._calls.n_samples = len(tree_leaves(x)[0])
            logits = self.network(x)
            if logits.requires_grad:
                logits.backward(self.logits_grad(logits.detach()).to(logits.dtype))
        return {name: norm[:n_samples] for name, norm in norms.items()}


class NormsBySample(nn.Module):
    """Inputs → norms of each sample's gradients, by a backward pass for each.

    Parameters
    ----------
    network : nn.Module
        A private copy, for this alone.
    logits_grad : callable
        Maps logits to the gradient of the loss with respect to them.
    order : int
        1 for L1 norms, 2 for squares of L2 norms.
    """

    def __init__(self, network, logits_grad, order):
        super().__init__()
        self.network, self.logits_grad, self.order = network, logits_grad, order
        # functional_call puts other parameters into the module while it runs.
        self._lock = threading.Lock()

    def _logits(self, chosen, x):
        # Copies of all that a network may write to: its input and its buffers.
        x = tree_map(torch.clone, x)
        put = {id(buffer): buffer.clone() for buffer in self.network.buffers()}
        put |= {id(p): chosen[n] for n, p in self.network.named_parameters() if n in chosen}
        # Each place once: a module that is registered twice would not get back what it had
        # (torch 2.13), as where torch itself looks for tied weights.
        places = {
            f"{path}.{key}".removeprefix("."): put[id(tensor)]
            for path, part in self.network.named_modules()
            for key, tensor in (*part._parameters.items(), *part._buffers.items())
            if id(tensor) in put
        }
        return torch.func.functional_call(self.network, places, (x,), tie_weights=False)

    def _norms(self, chosen, x, times=1):
        """Return a dict of norms for one sample, beside copies of itself if there are `times`."""
        batch = tree_map(lambda part: part.expand(times, *part.shape), x)
        logits, pull_back = torch.func.vjp(lambda chosen: self._logits(chosen, batch)[:1], chosen)
        (grads,) = pull_back(self.logits_grad(logits).to(logits.dtype))
        return {name: power_sum(grad.reshape(1, -1), self.order)[0] for name, grad in grads.items()}

    def forward(self, x, names):
        """Return a dict of norms with respect to the named parameters."""
        chosen = {name: p for name, p in self.network.named_parameters() if name in names}
        row_bytes = sum(p.numel() * p.element_size() for p in chosen.values())
        norms_of = partial(self._norms, chosen)
        rows = max(1, min(VMAP_ROWS, MICRO_BATCH_BYTES // row_bytes))
        # vjp leaves the grad mode as it is, in which oneDNN's LSTM keeps what the way back needs.
        with self._lock, torch.enable_grad():
            try:
                return torch.func.vmap(norms_of, chunk_size=rows)(x)
            except RuntimeError:
                # vmap follows no branch on data and no recurrent layer; one sample at a time does.
                leaves, form = tree_flatten(x)
                samples = (tree_unflatten(parts, form) for parts in zip(*leaves, strict=True))
                norms = [norms_of(sample, 2) for sample in samples]
                return {name: torch.stack([norm[name] for norm in norms]) for name in chosen}

    def of_few(self, x, names):
        """Return the same of few samples, which go forward together as in `NormsByRule`.

        So both see the same values: an activation near 0 that gets another sign by another
        algorithm, as in vmap, changes float32 gradients behind a ReLU by up to 3e-3.
        """
        parameters = self.network.named_parameters()
        chosen = {name: p.detach().requires_grad_() for name, p in parameters if name in names}
        with self._lock, torch.enable_grad():
            logits = self._logits(chosen, x)
        grad = self.logits_grad(logits.detach()).to(logits.dtype)
        norms = {name: grad.new_zeros(len(grad), dtype=torch.float64) for name in chosen}
        for i, one in enumerate(torch.eye(len(grad), dtype=grad.dtype, device=grad.device)):
            grads = torch.autograd.grad(
                logits, chosen.values(), grad * one[:, None], retain_graph=True, allow_unused=True
            )
            for name, grad_of in zip(chosen, grads, strict=True):
                if grad_of is not None:
                    norms[name][i] = power_sum(grad_of.reshape(1, -1), self.order)[0]
        return norms


class PerSampleGradientNorm(nn.Module):
    """Inputs → norm of each sample's gradient with respect to chosen parameters.

    A parameter goes by rule if that gives what autograd gives on two rows of the first batch; it
    does not where a weight is used twice or outside of its layer. The others go sample by sample,
    and so do all in a batch that takes another way through the network than those two rows.

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
    order : int, default=1
        1 for the L1 norm, 2 for the square of the L2 norm.
    """

    not_exportable = "it differentiates the network. With params='head' GradNormDetector does not."

    def __init__(self, network, names, logits_grad, temperature, order=1):
        super().__init__()

        def scaled_grad(logits):
            # In closed form it stays exact where the loss itself rounds to 0 or infinity. Times
            # the temperature it survives half precision.
            return logits_grad(logits, temperature) * temperature

        self.names, self.scale = names, temperature**order
        self.by_rule = NormsByRule(differentiable_copy(network), names, scaled_grad, order)
        self.by_sample = NormsBySample(differentiable_copy(network), scaled_grad, order)
        self._lock = threading.Lock()
        self._reached = None if self.by_rule.names else set()

    def _compare(self, x):
        """Settle what goes by rule, and the rows of a micro-batch."""
        x = tree_map(lambda part: part[[0, -1]], x)
        weights = {p.untyped_storage().data_ptr(): p for p in self.by_rule.parameters()}
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        try:
            expected = self.by_sample.of_few(x, self.by_rule.names)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                found = self.by_rule(x)
        except RuntimeError:
            self.by_rule.names = self._reached = set()
            return
        self._micro_batch = 2 * max(1, MICRO_BATCH_BYTES // max(1, sum(kept.values())))
        eps = torch.finfo(next(iter(weights.values())).dtype).eps
        noise = eps * sum(expected.values())
        self.by_rule.names = {
            name
            for name in self.by_rule.names
            for error in [(found.get(name, 0) - expected[name]).abs()]
            if bool((error <= eps**0.5 * expected[name] + noise).all())
        }
        self._reached = self.by_rule.names & found.keys()

    def _norm_by_rule(self, x):
        """Return the norm over what goes by rule; None where the rules do not hold."""
        leaves, form = tree_flatten(x)
        total = []
        for parts in zip(*(leaf.split(self._micro_batch) for leaf in leaves), strict=True):
            try:
                # A network may write to its input.
                norms = self.by_rule(tree_unflatten([part.clone() for part in parts], form))
            except RuntimeError:
                return None
            if norms.keys() != self._reached:
                return None
            total.append(sum(norms.values()))
        total = torch.cat(total)
        return total if bool(total.isfinite().all()) else None

    def forward(self, x):
        """Score inputs of shape (n_samples, ...)."""
        with self._lock:
            if self._reached is None:
                self._compare(x)
        norm = self._norm_by_rule(x) if self._reached else None
        rest = self.names if norm is None else self.names - self.by_rule.names
        norms = [] if norm is None else [norm]
        if rest:
            norms.extend(self.by_sample(x, rest).values())
        return clip_to(sum(norms) / self.scale, torch.float64)
