"""Gradients of what a network gives, with respect to the outputs of its layers and to X."""

from functools import partial

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from skood.functional import at_least_float32, pool
from skood.network.layers import _Hooked, _Reached, paired
from skood.network.modules import let_recurrent_layers_differentiate

# What enters the last linear layer, in the place of a layer that is differentiated.
FEATURES = object()


class LayerGradients(_Hooked):
    """Outputs of layers and gradients with respect to them, from one forward and backward pass.

    What is differentiated is a function of the logits, or of the output of a layer, where the
    pass then ends: its gradient with respect to these is what `seed` gives.

    Parameters
    ----------
    network : nn.Module
        A copy made by `differentiable_copy`, for this alone.
    names : list of str or None
        The layers; None is what enters the last linear layer.
    head_name : str or None
        The last linear layer.
    seed : callable or None
        Maps logits, or the output of the layer `of`, in float32 at least, to the gradient of the
        function with respect to them. None: they are summed.
    combine : callable
        Maps (output, gradient) of a layer to a tensor of shape (n_samples, ...); it is told
        `channel_axis` and `mask`, as `skood.functional.pool` is.
    channel_axes : list of int or None
        Those of the layers.
    of : str or FEATURES, default=None
        The layer whose output is differentiated, or what enters the last linear layer, which is
        then given as the last entry. None: the logits are.
    """

    not_exportable = "it differentiates the network."

    def __init__(self, network, names, head_name, seed, combine, channel_axes, of=None):
        super().__init__(network)
        self.names, self.channel_axes, self.of = names, channel_axes, of
        self.seed, self.combine = seed or torch.ones_like, combine
        for name in dict.fromkeys(names):
            if name is None:
                self._on_input(head_name, partial(self._keep, None))
            else:
                self._on_output(name, partial(self._keep, name))
        # Behind the other hooks, of which one may be at the same layer.
        if of is FEATURES:
            self._on_input(head_name, self._stop)
        elif of is not None:
            self._on_output(of, self._stop)

    def _keep(self, name, output):
        if not output.requires_grad:
            # The graph starts at the first of the layers: nothing before it is kept.
            output = output.detach().requires_grad_()
        # An in-place operation that follows would replace both the value and its gradient; so we
        # hold the edge and hand on a clone.
        self._record(name, (output, torch.autograd.graph.get_gradient_edge(output)))
        return output.clone()

    def _stop(self, output):
        self._calls.end = output
        raise _Reached

    def _run(self, x):
        """Return the logits, or the output of `of`."""
        try:
            logits = self.network(x)
        except _Reached:
            return vars(self._calls).pop("end")
        if self.of is not None:
            raise ValueError(f"The layer {self.of!r} was not called in a pass. Name another layer.")
        return logits

    def forward(self, x):
        """Return the combined tensor of each layer, in the order of `names`, and the features."""
        n_samples = len(tree_leaves(x)[0])
        x = paired(x)
        with torch.enable_grad(), self._recording(x) as seen:
            mask, end = self._calls.mask, self._run(x)
            self._require(self.names)
            outputs, edges = zip(*(seen[name] for name in self.names), strict=True)
            grads = [None] * len(edges)
            if end.requires_grad:
                with torch.no_grad():
                    seed = self.seed(at_least_float32(end.detach())).to(end.dtype)
                grads = torch.autograd.grad(end, edges, seed, allow_unused=True)
        for name, grad in zip(self.names, grads, strict=True):
            if grad is None:
                what = {None: "The logits do", FEATURES: "The features do"}.get(
                    self.of, f"The layer {self.of!r} does"
                )
                raise ValueError(f"{what} not depend on the layer {name!r}: name another.")
        with torch.no_grad():
            combined = tuple(
                self.combine(
                    at_least_float32(output.detach()),
                    at_least_float32(grad),
                    channel_axis=channel_axis,
                    mask=mask,
                )[:n_samples]
                for output, grad, channel_axis in zip(
                    outputs, grads, self.channel_axes, strict=True
                )
            )
            if self.of is not FEATURES:
                return combined
            return (*combined, at_least_float32(pool(end.detach()))[:n_samples])


class NotDifferentiable(ValueError):
    """Scores have no gradient with respect to X."""


class InputGradient(nn.Module):
    """Map X to the gradient of each row's score with respect to the row.

    Parameters
    ----------
    body : nn.Module
        Maps X to what the function takes, one tensor or a tuple. It is changed so that it can be
        differentiated through.
    function : callable
        Maps that to scores, one a row or a map of them a row, by operations that torch can
        differentiate. Of a row's scores the sum is differentiated.
    """

    not_exportable = "it differentiates the network."

    def __init__(self, body, function):
        super().__init__()
        self.body, self.function = body, function
        self.train(False)

    def train(self, mode=True):
        """Set the mode of all layers but those that cannot be differentiated through in it."""
        super().train(mode)
        let_recurrent_layers_differentiate(self)
        return self

    def forward(self, x):
        """Return a tensor of the shape of x, which is left as it is."""
        return self.with_inputs(x)[0]

    def with_inputs(self, x):
        """Return the gradients and the tuple of what the function took, for the rows of x."""
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            kind = "a dict" if isinstance(x, dict) else f"of {getattr(x, 'dtype', type(x))}"
            raise NotDifferentiable(
                f"X is {kind}, but inputs that are to be moved are one array of floats."
            )
        rows = paired(x.detach())
        with torch.enable_grad():
            rows = rows.clone().requires_grad_()
            # A network may write to what it is given.
            inputs = self.body(rows.clone())
            inputs = inputs if isinstance(inputs, tuple) else (inputs,)
            # The sum, as a mean would lose digits of each row's gradient.
            total = self.function(*inputs).sum()
            grad = None
            if total.requires_grad:
                (grad,) = torch.autograd.grad(total, rows, allow_unused=True)
        if grad is None:
            raise NotDifferentiable(
                "The scores do not depend on X by what torch can differentiate."
            )
        return grad[: len(x)], tuple(tensor.detach()[: len(x)] for tensor in inputs)


class Moved(nn.Module):
    """Map X to X + step · sign(gradient).

    Parameters
    ----------
    gradient : nn.Module
        Maps X to the gradients of the rows' scores, as `InputGradient` does.
    step : float or Tensor
        How far each entry is moved: one number, one for each entry of X's second axis, or as many
        as broadcast to X; negative to lower the scores. Where the gradient is 0, or not a number,
        nothing is moved.
    n_inputs : int or (float, "smallest"), default=None
        How many entries of a row are moved: those of the largest gradients; or a share of them,
        those of the smallest gradients. Of equal ones the first. None: all.
    """

    def __init__(self, gradient, step, n_inputs=None):
        super().__init__()
        self.gradient, self.step, self.n_inputs = gradient, step, n_inputs

    def forward(self, x):
        """Return moved rows."""
        return self.move(x, self.gradient(x))

    def move(self, x, gradient):
        """Return rows moved by their gradients."""
        # A row of zeros has no direction, so that what is divided by its length has no gradient.
        gradient = gradient.nan_to_num(nan=0.0)
        signs = gradient.sign()
        if self.n_inputs is not None:
            signs = signs * self._chosen(gradient.abs())
        return x.detach() + self._steps(x) * signs

    def _steps(self, x):
        """Return how far entries are moved, as a tensor that broadcasts to x."""
        step = torch.as_tensor(self.step, dtype=x.dtype, device=x.device)
        if step.ndim == 1:
            step = step.view(-1, *[1] * (x.ndim - 2))
        try:
            return step.expand(1, *x.shape[1:])
        except RuntimeError as error:
            raise ValueError(
                f"The steps by which X is moved have shape {tuple(step.shape)}, rows of X "
                f"{tuple(x.shape[1:])}.\nGive one number, or one for each of the {x.shape[1]} "
                "entries of X's second axis."
            ) from error

    def _chosen(self, sizes):
        """Return 1 for the entries that are moved, 0 for others."""
        rows, largest = sizes.flatten(1), not isinstance(self.n_inputs, tuple)
        n = self.n_inputs if largest else int(self.n_inputs[0] * rows.shape[1])
        order = rows.sort(dim=1, descending=largest, stable=True).indices[:, :n]
        return torch.zeros_like(rows).scatter_(1, order, 1).view_as(sizes)


class BeforeAndAfter(nn.Module):
    """Map X to what a body makes of it, and to what it makes of moved X.

    Parameters
    ----------
    moved : Moved
        Its gradient is that of a function of one tensor, such as features.
    body : nn.Module
        A copy of the body whose output the function takes; gives a tuple of one tensor.
    """

    def __init__(self, moved, body):
        super().__init__()
        self.moved, self.body = moved, body

    def forward(self, x):
        """Return a tuple of two tensors."""
        gradient, (before,) = self.moved.gradient.with_inputs(x)
        (after,) = self.body(self.moved.move(x, gradient))
        return before, after
