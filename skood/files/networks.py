"""The network of a file: what of it is saved, and the one that is given when it is loaded."""

import torch

from skood._warnings import warn
from skood.files.storage import hash_of, part_of, reading
from skood.network.model import fitted_module
from skood.network.modules import as_linear, private_copy, unwrap


def layout_of(module):
    """Return which layers and weights a network has."""
    layers = {
        name: type(part).__name__
        for name, part in module.named_modules()
        if not any(part.children())
    }
    weights = {
        name: f"{str(weight.dtype).removeprefix('torch.')} {tuple(weight.shape)}"
        for name, weight in module.named_parameters()
    }
    return {"layers": layers, "weights": weights}


def with_weights(model, expected, tensors, path):
    """Return the network given to `load`: itself, or a copy with the weights of the file."""
    module = as_linear(unwrap(fitted_module(model, torch.device("cpu"), torch.float32)))
    given = layout_of(module)
    with reading(path):
        differences = [
            (name, given[kind].get(name), expected[kind].get(name))
            for kind in given
            for name in {**expected[kind], **given[kind]}
            if expected[kind].get(name) != given[kind].get(name)
        ]
    if differences:
        name, here, there = differences[0]
        raise ValueError(
            f"`model` is another network than that of fit: {name or 'the network'} is {here} "
            f"here and {there} in {path}."
        )
    if not expected["held"]:
        if hash_of(b"", dict(module.named_parameters())) != expected["hash"]:
            warn(
                f"`model` has other weights than the network of fit, and {path} holds none: what "
                "was fitted does not go with them. Fit again, or save with include_model=True."
            )
        return model
    twin = private_copy(module)
    with reading(path):
        for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
            tensor.data = tensors[name].to(tensor.device)
        if layout_of(twin)["weights"] != expected["weights"]:
            raise ValueError("its weights have other shapes than it says")
    return twin


def nodes(meta, prefix=""):
    """Yield what a file has of an estimator and of those inside, and where their tensors are."""
    yield prefix, meta
    for number, part in enumerate(meta.get("parts", ())):
        yield from nodes(part, f"{prefix}{number}.")


def join_networks(meta, tensors):
    """Let estimators inside of one that have the same network share its layout and its weights."""
    found = {}
    for prefix, node in nodes(meta):
        if isinstance(node.get("model"), dict):
            own = part_of(tensors, f"{prefix}network")
            first = found.setdefault((repr(node["model"]), hash_of(b"", own)), prefix)
            if first != prefix:
                node["model"] = {"same": first}
                for name in own:
                    del tensors[f"{prefix}network.{name}"]
    layouts = [node["model"] for prefix, node in nodes(meta) if prefix in found.values()]
    if any(one[kind] != layouts[0][kind] for one in layouts for kind in ("layers", "weights")):
        raise TypeError(
            f"The {meta['class']} holds networks of different layers, and skood.load takes one "
            "network.\nSave the estimators in it one at a time, or use pickle."
        )
    if len(layouts) > 1 and not layouts[0]["held"]:
        raise TypeError(
            f"The {meta['class']} holds {len(layouts)} networks of different weights: "
            "save it with include_model=True."
        )


def separate_networks(meta, tensors):
    """Give each estimator its network again; return all layouts and tensors, by what tells them.

    The way back from `join_networks`.
    """
    networks, at = {}, {}
    for prefix, node in nodes(meta):
        kind = node.get("model")
        if not isinstance(kind, dict):
            continue
        if "same" in kind:
            node["model"] = kind = at[kind["same"]]
            for name, tensor in networks[id(kind)][1].items():
                tensors[f"{prefix}network.{name}"] = tensor
        else:
            node["model"] = kind = {k: kind[k] for k in ("layers", "weights", "hash", "held")}
            at[prefix] = kind
            networks[id(kind)] = kind, part_of(tensors, f"{prefix}network")
    return networks
