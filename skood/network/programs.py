"""Networks from `.pt2` files of torch.export, read without pickles and without running code."""

import contextlib
import io
import json
import logging
import os
import re
import warnings
import zipfile

import torch
from torch import fx, nn

# torch evaluates sizes as text, which may be no more than these names, and numbers.
SIZE_NAMES = {
    *("Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod"),
    *("FloorDiv", "CleanDiv", "CeilDiv", "ModularIndexing", "TruncToInt", "Identity", "Eq", "Ne"),
    *("StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "And", "Or", "Not", "true"),
    *("false", "True", "False", "positive", "nonnegative", "nonzero", "negative", "integer"),
}
# What nodes of a graph may call.
CALLS = re.compile(
    r"torch\.ops\.(?:aten\.(?P<operator>\w+)|higher_order)\.\w+|_operator\.\w+"
    r"|math\.\w+|torch\.sym_\w+"
)
NOT_OPERATIONS = re.compile(r"_operator\.(?:attrgetter|methodcaller|itemgetter|call)")
# Operators that trust their caller: given other sizes or indices than torch gives, these read and
# write outside of tensors, and some read files. Networks need none of them.
TRUSTING = re.compile(
    r"_\w+|\w*(backward|_jvp|_unsafe|sparse|quantize|qparams|pack)\w*|(from_file|save)"
    r"|(set|resize|fbgemm|quantized|mkldnn|cudnn|miopen|fused|nested|fractional|record)_\w*"
    r"|set|resize|segment_reduce|native_batch_norm|ctc_loss|as_strided_\w+"
    r"|((crow|ccol|row|col)_)?indices(_copy)?|values"
)
# Of the operators that torch keeps to itself those that exported programs call and that look at
# their sizes. Weight norm, and batch norm after run_decompositions, do not: they pass the ends of
# weights.
PRIVATE = re.compile(
    r"_(to_copy|(log_)?softmax|unsafe_(view|index|index_put)|assert_\w+"
    r"|upsample_\w+_aa|local_scalar_dense)"
)
# Where torch imports what a file names: defaults of dictionaries, and enumerations.
IMPORTS = re.compile("default_factory|__enum__")
REMEDY = "Write it by torch.export.save(torch.export.export(net, ...), file)."


def read_program(path):
    """Return the network in a `.pt2` file as a module that maps X to what it returns.

    Parameters
    ----------
    path : str or path-like
        As ``torch.export.save`` has written it, of a network with one input whose number of rows
        is left open.

    Returns
    -------
    network : nn.Module
        With the network's linear layers as ``nn.Linear`` under the names they had; all else are
        calls of functions.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it holds no such program, or one that needs more than its graph and numbers.

    Notes
    -----
    ``torch.export.load`` falls back to pickle, for the example inputs too, and runs text of the
    file as Python. So it is given a copy of the archive that holds the graph and plain tensors
    alone, in which each call and each size was looked at.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            clean = _without_pickles(archive)
    except OSError:
        raise
    except Exception as error:
        # zipfile, zlib and json have errors of their own for damaged content.
        raise ValueError(f"{path} cannot be read: {error}. {REMEDY}") from error
    # Where torch writes tracebacks of what it cannot read.
    log = logging.getLogger("torch.export")
    was_disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _as_network(torch.export.load(clean)).eval()
    except Exception as error:
        if isinstance(error, _Refused):
            raise ValueError(f"{path} {error}") from None
        raise ValueError(f"{path} holds no program that torch reads. {REMEDY}") from error
    finally:
        log.disabled = was_disabled


class _Refused(ValueError):
    """What the program is, where it cannot be used."""


def _without_pickles(archive):
    """Return the bytes of an archive with nothing but what torch reads as text and numbers."""
    if sum(entry.file_size for entry in archive.infolist()) > os.path.getsize(archive.filename):
        raise ValueError("it is compressed, which torch.export.save does not do")
    clean = io.BytesIO()
    with zipfile.ZipFile(clean, "w") as copy:
        for entry in archive.infolist():
            name = entry.filename.partition("/")[2]
            content = archive.read(entry)
            if name == "models/model.json":
                content = _checked_graph(content)
            elif name.startswith("data/sample_inputs/"):
                # Pickled, and not needed.
                content = b""
            elif name.endswith("_config.json"):
                _check_payloads(content)
            elif not re.fullmatch(
                r"data/(weights/weight_\d+|constants/tensor_\d+)|archive_format|archive_version"
                r"|byteorder|\.data/\w+|\.format_version|\.storage_alignment",
                name,
            ):
                raise ValueError(f"it holds {entry.filename!r:.80}, which is no part of a network")
            copy.writestr(entry.filename, content)
    clean.seek(0)
    return clean


def _check_payloads(content):
    """Raise if a tensor is pickled."""
    for name, entry in json.loads(content)["config"].items():
        is_tensor = re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"])
        if entry["use_pickle"] is not False or not is_tensor:
            raise ValueError(f"{name!r:.80} is a pickle, which may run code")


def _checked_graph(content):
    """Return a graph without what runs as code; raise if it calls anything but operations."""
    graph = json.loads(content)
    # Text that torch runs as Python: it compares sizes of the input.
    graph["guards_code"] = []
    pending = [graph]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            if "metadata" in value:
                value["metadata"] = {}
            for key, part in value.items():
                if key in ("target", "as_operator") and not _is_call(part):
                    raise ValueError(
                        f"it calls {part!r:.80}, which is no operation of torch, or none that "
                        "checks what it is given"
                    )
                if key == "expr_str" and not _is_size(part):
                    raise ValueError(f"it has a size {part!r:.80}")
            pending += [*value, *value.values()]
        elif isinstance(value, str):
            if IMPORTS.search(value):
                raise ValueError("it names modules to import")
            # Texts hold JSON, in which escapes may spell these names, and that texts again.
            with contextlib.suppress(json.JSONDecodeError):
                pending.append(json.loads(value))
    return json.dumps(graph).encode()


def _is_size(text):
    """Tell whether text is a size in numbers and symbols, such as s0 and u1."""
    names = set(re.findall(r"[^\W\d]\w*", text))
    known = all(name in SIZE_NAMES or re.fullmatch(r"[su]\d+", name) for name in names)
    return known and re.fullmatch(r"[\w\s(),'=<>+*/-]*", text, re.ASCII) is not None


def _is_call(target):
    """Tell whether a node calls an operation on tensors or sizes."""
    call = CALLS.fullmatch(target) if isinstance(target, str) else None
    if call is None or NOT_OPERATIONS.fullmatch(target):
        return False
    operator = call["operator"] or ""
    return PRIVATE.fullmatch(operator) is not None or not TRUSTING.fullmatch(operator)


def _as_network(program):
    """Return a plain module that computes what a program does."""
    module = program.module(check_guards=False)
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    sizes = [node.meta["val"].shape for node in module.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1 or not len(sizes[0]):
        raise _Refused(
            f"has {len(inputs)} inputs; it must have one, whose first axis is that of rows."
        )
    if isinstance(sizes[0][0], int):
        raise _Refused(
            f"takes batches of {sizes[0][0]} rows and no others.\nLeave their number open: "
            "torch.export.export(net, (X[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))."
        )
    (output,) = (node for node in graph.nodes if node.op == "output")
    if isinstance(output.args[0], (list, tuple)) and len(output.args[0]) == 1:
        output.args = (output.args[0][0],)
    for node in list(graph.nodes):
        # Values on a device of no memory, which cannot be copied.
        node.meta.clear()
        if node.op == "call_module":
            # It checks the sizes of the input.
            graph.erase_node(node)
        elif node.target is torch.ops.aten.linear.default:
            _name_linear(module, graph, node)
    return fx.GraphModule(module, graph, class_name="Program")


def _name_linear(module, graph, node):
    """Let a call of a function with weights be one of a linear layer, where it had a name."""
    x, weight, bias = [*node.args, *node.kwargs.values(), None][:3]
    name, _, last = str(getattr(weight, "target", "")).rpartition(".")
    if weight.op != "get_attr" or last != "weight" or not name:
        return
    if bias is not None and bias.target != f"{name}.bias":
        return
    holder = module.get_submodule(name)
    if not isinstance(holder, nn.Linear):
        rows, columns = holder.weight.shape
        layer = nn.Linear(columns, rows, bias=bias is not None, device="meta")
        layer.weight, layer.bias = holder.weight, None if bias is None else holder.bias
        module.set_submodule(name, layer)
    with graph.inserting_before(node):
        call = graph.call_module(name, (x,))
    node.replace_all_uses_with(call)
    graph.erase_node(node)
