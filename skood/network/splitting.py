"""Cutting a network in two at a layer, by its traced graph."""

from collections import Counter
from functools import partial

import torch
from torch import fx, nn

from skood.network.layers import check_called, closest_names, first_argument
from skood.network.modules import private_copy, unwrap


def split(net: nn.Module, layer: str | None = None) -> tuple[nn.Module, nn.Module]:
    """Cut a network in two, to compute features once and to tune on them what follows.

    Parameters
    ----------
    net : nn.Module
        Maps X, its one argument by position, to logits. It is left alone.
    layer : str, default=None
        The submodule after which to cut, or one call of it such as "relu:1", that gives a tensor.
        None: cut in front of the ``nn.Linear`` that makes the logits.

    Returns
    -------
    body : nn.Module
        Maps X to the output of the layer, or to what enters the last linear layer.
    rest : nn.Module
        Maps that, without writing to it, to what `net` returns: ``rest(body(X)) == net(X)``; an
        output object becomes a dict. The ``nn.Linear`` itself where no layer is named.

    Notes
    -----
    Both are in eval mode and share the weights of `net`, frozen: train a ``copy.deepcopy``.

    The forward of each module around the layer is traced, on no data: what depends on a type, as
    in ``isinstance(x, torch.Tensor)``, may go astray unseen. Where one branches on values and no
    layer is named, the last ``nn.Linear`` in the order of modules is taken for the one that makes
    the logits. So compare ``rest(body(X))`` with ``net(X)`` on a few rows.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from skood import ASHDetector
    >>> from skood.network import split
    >>> X, y = load_iris(return_X_y=True)
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> body, rest = split(net, "0")
    >>> features = body(torch.tensor(X, dtype=torch.float32))
    >>> [ASHDetector(rest, percentile=p).fit(features).n_features_in_ for p in (0.65, 0.9)]
    [8, 8]
    """
    net = private_copy(unwrap(net))
    names = [name for name, _ in net.named_modules() if name]
    return _split_head(net, names) if layer is None else _split_layer(net, names, layer)


class _Recorded:
    """A base that the class of each module is given while the network, our own, is traced.

    `torch.fx` replaces ``nn.Module.__call__`` for the process instead: every call of a compiled
    network in another thread fails meanwhile, and two tracers at once leave it replaced for good.
    """

    def __init_subclass__(cls):
        """Keep from the user's classes that one more is derived from them."""

    def __call__(self, *args, **kwargs):
        return self._skood_tracer.call_module(self, super().__call__, args, kwargs)

    def __getattr__(self, name):
        return self._skood_tracer.getattr(
            name, super().__getattr__(name), self._skood_tracer.weights
        )


class _Tracer(fx.Tracer):
    """Record the calls in a network that is ours alone, looking into its `opened` modules only."""

    def __init__(self, opened=()):
        super().__init__()
        self.opened, self.calls, self.made, self.weights = opened, Counter(), {}, {}

    def is_leaf_module(self, m, module_qualified_name):
        return m not in self.opened

    def call_module(self, m, forward, args, kwargs):
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            made = self.create_proxy("call_module", name, args, kwargs)
        else:
            made = forward(*args, **kwargs)
        self.made[name] = self.made[f"{name}:{self.calls[name]}"] = getattr(made, "node", None)
        self.calls[name] += 1
        return made

    def trace(self, root, concrete_args=None):
        self.root, self.graph, self.tensor_attrs = root, fx.Graph(tracer_cls=type(self)), {}
        self.submodule_paths = {part: name for name, part in root.named_modules()}
        classes = {part: type(part) for part in self.submodule_paths}
        # By __call__, as its hooks are part of the pass.
        call, x = partial(type(root).__call__, root), self.create_proxy("placeholder", "x", (), {})
        try:
            for part, cls in classes.items():
                own = {"_skood_tracer": self, "__module__": cls.__module__}
                part.__class__ = type(cls.__name__, (_Recorded, cls), own)
            self.create_node("output", "output", (self.create_arg(call(x)),), {})
        finally:
            for part, cls in classes.items():
                part.__class__ = cls
        return self.graph


def _split_head(net, names):
    if isinstance(net, nn.Linear):
        return nn.Identity(), net
    linear = [name for name in names if isinstance(net.get_submodule(name), nn.Linear)]
    try:
        head = _find_head(net)
    except Exception:  # Whatever the forward raises when it meets what is not a tensor.
        if linear:
            rest = net.get_submodule(linear[-1])
            net.set_submodule(linear[-1], nn.Identity())
            return net, rest
        head = None
    if head is None:
        raise ValueError(
            f"{type(net).__name__} does not return what one nn.Linear gives. Name the layer to cut "
            f"after: layer=... {closest_names('', names)}"
        )
    nodes = list(head.graph.nodes)
    body = _build(net, nodes[: nodes.index(head)], end=first_argument(head.args, head.kwargs))
    return body, private_copy(net.get_submodule(head.target))


def _find_head(net):
    """Return the call of the one linear layer whose output the network returns, or None."""
    opened = set()
    while True:
        nodes = _Tracer(opened).trace(net).output_node().all_input_nodes
        made = {n: net.get_submodule(n.target) for n in nodes if n.op == "call_module"}
        closed = {part for part in made.values() if not isinstance(part, nn.Linear)}
        if not closed:
            return next(iter(made)) if len(made) == 1 else None
        opened |= closed


def _split_layer(net, names, layer):
    owner = type(net).__name__
    part = net.get_submodule(check_called(layer, owner, names, None))
    tracer = _Tracer({m for m in net.modules() if m is not part and part in m.modules()})
    try:
        nodes = list(tracer.trace(net).nodes)
    except Exception as error:  # Whatever the forward raises when it meets what is not a tensor.
        raise ValueError(
            f"{owner} cannot be cut after {layer!r}, as its forward cannot be traced: {error}. "
            "Only modules around the layer are traced: move what branches on values into a module "
            "of its own, and write x.shape[0] for len(x)."
        ) from error
    check_called(layer, owner, names, tracer.calls)

    def is_crossed(node):
        """Tell whether anything but weights is computed before a node and used after it."""
        return any(n < node < user for n in nodes if n.op != "get_attr" for user in n.users)

    cut = tracer.made[layer]
    if is_crossed(cut):
        near = [
            n for n, m in tracer.made.items() if tracer.calls[n] == 1 and m and not is_crossed(m)
        ]
        raise ValueError(
            f"{owner} cannot be cut after {layer!r}: what is computed before it, as for a skip "
            f"connection, is used after it. Name another layer. {closest_names('', near)}"
        )
    after = nodes.index(cut) + 1
    return _build(net, nodes[:after], end=cut), _build(private_copy(net), nodes[after:], start=cut)


def _build(net, nodes, start=None, end=None):
    """Return a module that computes some nodes: from the value of `start`, or to that of `end`."""
    graph, new = fx.Graph(tracer_cls=_Tracer), {}
    if start is not None:
        # What follows may write to what it is given, the features, which are used again.
        new[start] = graph.call_function(torch.clone, (graph.placeholder("x"),))

    def copied(node):
        if node not in new:  # Weights may have been read before the cut.
            new[node] = graph.node_copy(node, copied)
        return new[node]

    for node in nodes:
        copied(node)
    if end is not None:
        graph.output(copied(end))
    return fx.GraphModule(net, graph).eval()
