"""A fitted detector as one graph that runs without skood."""

import io
import re
from os import PathLike
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from skood._typing import Inputs
from skood.data.arrays import move
from skood.data.streams import is_stream
from skood.estimators.network_estimator import NetworkEstimator, OneState, computing
from skood.files.graphs import devices_of, first_of, graph_of
from skood.files.storage import replacing


def export(
    detector: Any,
    path: str | PathLike[str],
    example: Inputs,
    *,
    format: str = "torch",
) -> None:
    """Write preprocessing, network, method and threshold of a fitted detector as one graph.

    It maps a batch of any number of rows to arrays: scores, as ``score_samples`` gives, decisions,
    as ``decision_function`` gives, negative for out-of-distribution rows, and more as below.

    Parameters
    ----------
    detector : detector, or Pipeline that ends in one
        Fitted. It computes on its own device, and so does the graph. Beside skood's detectors:

        - `ConformalDetector`: a third output is the p-value.
        - `EnsembleDetector`, but for ``method="stouffer"``.
        - `OpenSetClassifier`: the last output is the label, as a place in ``classes_``, or -1 where
          it is unknown. Decisions are those of its detector.
        - A scikit-learn ``Pipeline`` of `FeatureExtractor`, StandardScaler, MinMaxScaler,
          MaxAbsScaler, RobustScaler, PCA, IncrementalPCA, TruncatedSVD, Normalizer and
          ``FunctionTransformer()``, each as it is or in `FitOnInliers`.
    path : str or path-like
        The file. One that is there is replaced when the new one is complete.
    example : array-like of shape (n_samples, ...)
        Rows of X, one at least. The graph takes rows of this shape and dtype.
    format : {"torch", "onnx"}, default="torch"
        "torch": for ``torch.export.load(path).module()(X)``. "onnx": for ONNX runtimes, with
        inputs called X, or as in a dict, and outputs score, decision, p_value and label.

    Raises
    ------
    TypeError
        If there is no graph of `detector` or of what is inside of it, such as detectors and other
        transformers of scikit-learn, or it computes with gradients: ``GradNormDetector`` but for
        the last linear layer, ``NACDetector(layers=...)``.
    ValueError
        If the graph of the network depends on values, so that it cannot be traced, or ONNX has no
        operator for what it computes, as for ``RankFeatDetector``.

    See Also
    --------
    save : A file that `skood.load` makes a detector of.

    Notes
    -----
    All rows of a batch are computed at once, and X is not checked: NaN gives NaN. Diagonal,
    spherical and tied Gaussians take memory for rows × classes × features.

    Examples
    --------
    >>> import os, tempfile, skood, torch
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = skood.ASHDetector().fit(X, y)
    >>> path = os.path.join(tempfile.mkdtemp(), "detector.pt2")
    >>> skood.export(detector, path, X[:1])
    >>> score, decision = torch.export.load(path).module()(torch.tensor(X))
    >>> bool(((decision >= 0).numpy() == (detector.predict(X) == 1)).all())
    True
    """
    if format not in ("torch", "onnx"):
        raise ValueError(f"format must be 'torch' or 'onnx', got {format!r}.")
    if format == "onnx":
        import_onnxscript()
    name = type(detector).__name__
    if is_stream(example):
        raise TypeError("example must be rows of X as an array or a dict of arrays.")
    check_is_fitted(detector)
    if isinstance(detector, OneState):
        detector = detector._snapshot()
    batch = batch_of(detector, example)
    graph = graph_of(detector, example).eval()
    unable = [what for part in graph.modules() if (what := getattr(part, "not_exportable", None))]
    if unable:
        raise TypeError(
            f"{name} cannot be exported as it is: {unable[0]}\nskood.save takes it, for processes "
            "that have skood."
        )
    batch = to_one_device(graph, batch, name)
    is_named = isinstance(batch, dict)
    n_rows = {0: torch.export.Dim.DYNAMIC}
    shapes = dict.fromkeys(batch, n_rows) if is_named else n_rows
    with computing():
        # Masks of dropout are drawn with the first batch, which must not be one of a trace.
        graph(batch)
        try:
            program = torch.export.export(graph, (batch,), dynamic_shapes=(shapes,), strict=False)
        except Exception as error:
            raise ValueError(f"torch.export cannot trace {name} on its network: {error}") from error
        content = io.BytesIO()
        if format == "torch":
            torch.export.save(program, content)
        else:
            names = list(batch) if is_named else ["X"]
            content.write(as_onnx(program, names, list(graph.names), name))
    with replacing(path) as draft, open(draft, "wb") as file:
        file.write(content.getbuffer())


def batch_of(estimator, example):
    """Return three rows of X as the tensors that a graph takes: of one, torch makes a constant."""
    first = first_of(estimator)
    if isinstance(first, NetworkEstimator):
        rows = first._check_rows(example, "export")
        return move(rows.take(np.arange(3) % len(rows)), first.device_, None, copy=True)
    array = check_array(example, dtype=[np.float64, np.float32], ensure_all_finite=False)
    return torch.from_numpy(array[np.arange(3) % len(array)])


def to_one_device(graph, batch, name):
    """Move what scores are compared with to the device of the detectors; return the batch there."""
    devices = devices_of(graph)
    if len(devices) > 1:
        raise TypeError(
            f"{name} computes on several devices, {', '.join(sorted(devices))}, and a graph on "
            "one.\nFit it with the same device for all."
        )
    (device,) = devices
    graph.to(device)
    return move(batch, device, None)


def as_onnx(program, inputs, outputs, name):
    """Return the bytes of a graph as ONNX."""
    try:
        converted: Any = torch.onnx.export(
            program, input_names=inputs, output_names=outputs, verbose=False
        )
    except torch.onnx.errors.OnnxExporterError as error:
        operator = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
        reason = f"ONNX has no operator for {operator[1]}" if operator else f"{error}"
        raise ValueError(
            f'{name} cannot be written as ONNX: {reason:.400}.\nformat="torch" writes it.'
        ) from error
    return converted.model_proto.SerializeToString()


def import_onnxscript():
    """Raise unless what torch exports to ONNX by is installed."""
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'skood.export with format="onnx" needs onnxscript: pip install onnxscript'
        ) from error
