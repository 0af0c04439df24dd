"""Networks in `.pt2` files: what they give, and that nothing in a file is run."""

import contextlib
import io
import json
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from skood import GMMDetector, GradNormDetector
from skood.network.programs import read_program
from tests.networks import DenseNetLike, Segmenter, Sequences

OPEN = ({0: torch.export.Dim.DYNAMIC},)


class Classifier(nn.Module):
    """With sizes to compute, and a layer of no bias."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout())
        self.hidden, self.fc = nn.Linear(64, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.hidden(self.body(x).reshape(x.shape[0], -1)).relu())


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Classifier().eval()


@pytest.fixture(scope="module")
def X():
    return torch.randn(30, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def content(net, X):
    """Return the bytes of the network's file."""
    file = io.BytesIO()
    torch.export.save(torch.export.export(net, (X[:2],), dynamic_shapes=OPEN), file)
    return file.getvalue()


def changed(content, path, change):
    """Write a file with parts changed: `change(name, bytes)` returns what they shall be."""
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name.partition("/")[2], old.read(name)))
    return path


def test_it_is_the_network(net, X, content, tmp_path):
    (tmp_path / "net.pt2").write_bytes(content)
    program = read_program(tmp_path / "net.pt2")
    for n_rows in (1, 2, 30):
        torch.testing.assert_close(program(X[:n_rows]), net(X[:n_rows]), rtol=0, atol=0)
    linear = {name for name, part in program.named_modules() if isinstance(part, nn.Linear)}
    assert linear == {"hidden", "fc"}
    y = np.arange(30) % 3
    for detector in (GMMDetector, GradNormDetector):
        scores = [detector(model).fit(X, y).score_samples(X) for model in (net, program)]
        np.testing.assert_array_equal(*scores)


def test_number_of_rows_must_be_open(net, X, tmp_path):
    torch.export.save(torch.export.export(net, (X[:2],)), tmp_path / "two.pt2")
    with pytest.raises(ValueError, match="takes batches of 2 rows and no others.\nLeave their num"):
        read_program(tmp_path / "two.pt2")


class Payload:
    """A pickle that says so when it is loaded."""

    def __reduce__(self):
        return exec, ("import builtins; builtins.was_run = True",)


RUN = "__import__('builtins').__setattr__('was_run', True)"


def graph_with(**changes):
    """Return a change of the graph: of the first of each key."""

    def change(name, data):
        if name != "models/model.json":
            return data
        text = data.decode()
        for key, value in changes.items():
            start = text.index(f'"{key}": "') + len(key) + 5
            end = json.JSONDecoder().raw_decode(text[start - 1 :])[1] + start - 2
            text = text[:start] + json.dumps(value)[1:-1] + text[end:]
        json.loads(text)
        return text.encode()

    return change


def naming_a_module(context, kind="builtins.dict", escaped=False):
    """Return a change of the layout of the inputs, which torch reads as JSON in JSON."""

    def change(name, data):
        if name != "models/model.json":
            return data
        graph = json.loads(data)
        for entry in graph["graph_module"]["module_call_graph"]:
            if entry["signature"] is not None:
                spec = json.loads(entry["signature"]["in_spec"])
                spec[1]["children_spec"][1] |= {"type": kind, "context": context}
                text = json.dumps(spec)
                entry["signature"]["in_spec"] = (
                    text.replace("default_f", "\\u0064efault_f").replace("__e", "\\u005f_e")
                    if escaped
                    else text
                )
        return json.dumps(graph).encode()

    return change


ENUM = json.dumps({"__enum__": True, "fqn": "marker_module:X", "name": "a"})
DEFAULT = {
    "default_factory_module": "marker_module",
    "default_factory_name": "X",
    "dict_context": [],
}


# Given sizes or indices of others, these read or write outside of tensors, or end the process.
TRUSTING = [
    *("_reshape_alias.default", "_sparse_coo_tensor_unsafe.default", "_ctc_loss.default"),
    *("_convert_indices_from_coo_to_csr.default", "max_pool2d_with_indices_backward.default"),
    *("_segment_reduce_backward.default", "segment_reduce.default", "ctc_loss.IntList"),
    *("choose_qparams_optimized.default", "sparse_coo_tensor.size", "_fused_sgd_.default"),
    *(
        "_weight_norm.default",
        "native_batch_norm.default",
        "_native_batch_norm_legit_no_training.default",
    ),
    *("set_.source_Tensor_storage_offset", "resize_.default", "from_file.out"),
]


def pickled_weight(name, data):
    if name == "data/weights/model_weights_config.json":
        config = json.loads(data)
        next(iter(config["config"].values()))["use_pickle"] = True
        return json.dumps(config)
    return pickle.dumps(Payload()) if name == "data/weights/weight_0" else data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pickled_weight, "is a pickle"),
        (graph_with(target="torch.os.system"), "calls 'torch.os.system', which is no operation"),
        (graph_with(target="torch.ops.aten.from_file.default"), "calls 'torch.ops.aten.from_file"),
        (graph_with(target="_operator.methodcaller"), "which is no operation"),
        *(
            (graph_with(target=f"torch.ops.aten.{name}"), f"calls 'torch.ops.aten.{name}', which")
            for name in TRUSTING
        ),
        (graph_with(expr_str=RUN), "has a size"),
        (naming_a_module(ENUM), "names modules to import"),
        (naming_a_module(ENUM, escaped=True), "names modules to import"),
        (naming_a_module(DEFAULT, "collections.defaultdict"), "names modules to import"),
        (naming_a_module(DEFAULT, "collections.defaultdict", True), "names modules to import"),
    ],
)
def test_what_would_run_code_is_refused(change, message, content, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.was_run", False, raising=False)
    with pytest.raises(ValueError, match=message):
        read_program(changed(content, tmp_path / "net.pt2", change))
    import builtins

    assert not builtins.was_run


def test_torch_imports_what_is_refused(content, tmp_path, monkeypatch):
    """Else the changes above would prove nothing."""
    (tmp_path / "marker_module.py").write_text("import builtins; builtins.was_run = True")
    monkeypatch.syspath_prepend(tmp_path)
    import builtins

    for context, kind in ((ENUM, "builtins.dict"), (DEFAULT, "collections.defaultdict")):
        monkeypatch.setattr(builtins, "was_run", False, raising=False)
        monkeypatch.delitem(sys.modules, "marker_module", raising=False)
        path = changed(content, tmp_path / "net.pt2", naming_a_module(context, kind, True))
        with pytest.raises(ValueError, match="names modules to import"):
            read_program(path)
        assert not builtins.was_run
        with contextlib.suppress(Exception):
            torch.export.load(path)
        assert builtins.was_run


def test_an_operator_that_is_refused_reads_outside_of_a_tensor():
    """Else refusing it would prove nothing."""
    x = torch.arange(10.0)[:5]
    assert torch.ops.aten._reshape_alias(x, [1000], [1]).shape == (1000,)


def test_what_networks_call_is_read(tmp_path):
    for net in (Segmenter(), DenseNetLike(), Sequences()):
        X = torch.rand(2, *net.input_shape)
        program = torch.export.export(net.eval(), (X,), dynamic_shapes=OPEN)
        torch.export.save(program, tmp_path / "net.pt2")
        torch.testing.assert_close(read_program(tmp_path / "net.pt2")(X), net(X))


def test_a_file_that_grows_is_refused(content, tmp_path):
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        large = f"{old.namelist()[0].partition('/')[0]}/data/weights/weight_99"
        new.writestr(large, bytes(2**22), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="it is compressed"):
        read_program(path)


def test_names_of_inputs_may_have_accents(net, X, tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return {"größe": self.net(x)}

    program = torch.export.export(Named(), (X[:2],), dynamic_shapes=OPEN)
    torch.export.save(program, tmp_path / "net.pt2")
    read = read_program(tmp_path / "net.pt2")
    torch.testing.assert_close(read(X), net(X), rtol=0, atol=0)


def test_what_would_run_code_and_is_not_needed_is_not_read(content, net, X, tmp_path, monkeypatch):
    import builtins

    monkeypatch.setattr("builtins.was_run", False, raising=False)

    def change(name, data):
        if name == "data/sample_inputs/model.pt":
            return pickle.dumps(Payload())
        if name == "models/model.json":
            return json.dumps({**json.loads(data), "guards_code": [RUN]})
        return data

    path = changed(content, tmp_path / "net.pt2", change)
    program = read_program(path)
    torch.testing.assert_close(program(X), net(X), rtol=0, atol=0)
    assert not builtins.was_run
    # torch itself reads the pickle, which is why it is not given the file.
    with pytest.raises(Exception):  # noqa: B017
        torch.export.load(path)
    assert builtins.was_run


def test_damage_is_told(content, tmp_path, caplog):
    random, path = np.random.default_rng(0), tmp_path / "net.pt2"
    for n_bytes in (0, 100, len(content) // 2):
        path.write_bytes(content[:n_bytes])
        with pytest.raises(ValueError, match="cannot be read"):
            read_program(path)
    part = changed(content, path, lambda name, data: data[: -3 * name.startswith("data/w") or None])
    with pytest.raises(ValueError, match="holds no program|cannot be read"):
        read_program(part)
    for _ in range(20):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            read_program(path)
        except ValueError as error:
            assert str(path) in str(error)
    assert not caplog.records
    with pytest.raises(FileNotFoundError):
        read_program(tmp_path / "missing.pt2")
