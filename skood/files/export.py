"""A fitted detector as one graph that runs without skood."""

import io
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import nn

from skood._typing import Inputs
from skood.data.arrays import move
from skood.data.streams import is_stream
from skood.estimators.base import BaseDetector
from skood.estimators.network_estimator import computing
from skood.files.persistence import replacing
from skood.functional import clip_to
from skood.learning.learning import as_inputs


class Graph(nn.Module):
    """Map a batch of X to its scores and decisions."""

    def __init__(self, detector, dtype):
        super().__init__()
        self.body, self.scorer = detector._body, detector.scorer_
        self.device, self.input_dtype = detector.device_, detector._network.input_dtype
        self.offset, self.dtype = detector.offset_, dtype

    def forward(self, X):
        """Return two tensors of shape (n_samples,), or of maps."""
        # A copy: a network may write to its input.
        batch = move(X, self.device, self.input_dtype, copy=True)
        scores = clip_to(self.scorer(*as_inputs(self.body(batch))), self.dtype)
        return scores, clip_to(scores.double() - self.offset, self.dtype)


def export(
    detector: BaseDetector,
    path: str | PathLike[str],
    example: Inputs,
    *,
    format: str = "torch",
) -> None:
    """Write the network, the method and the threshold of a fitted detector as one graph.

    It maps a batch of any number of rows to two arrays: scores, as ``score_samples`` gives, and
    decisions, as ``decision_function`` gives, negative for out-of-distribution rows.

    Parameters
    ----------
    detector : detector
        Fitted. It computes on its own device, and so does the graph.
    path : str or path-like
        The file. One that is there is replaced when the new one is complete.
    example : array-like of shape (n_samples, ...)
        Rows of X, one at least. The graph takes rows of this shape and dtype.
    format : {"torch", "onnx"}, default="torch"
        "torch": for ``torch.export.load(path).module()(X)``. "onnx": for ONNX runtimes, with
        inputs and outputs called X (or as in a dict), score and decision.

    Raises
    ------
    TypeError
        If `detector` is none of skood's, or computes with gradients: ``GradNormDetector`` but for
        the last linear layer, ``NACDetector(layers=...)``.
    ValueError
        If the graph of the network depends on values, so that it cannot be traced.

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
    if not isinstance(detector, BaseDetector):
        raise TypeError(f"{name} cannot be exported, only skood's detectors can.")
    if is_stream(example):
        raise TypeError("example must be rows of X as an array or a dict of arrays.")
    detector = detector._snapshot()
    rows = detector._check_rows(example, "export")
    graph = Graph(detector, rows.dtype).eval()
    unable = [what for part in graph.modules() if (what := getattr(part, "not_exportable", None))]
    if unable:
        raise TypeError(f"{name} cannot be exported as it is: {unable[0]}")
    # Of one row, or none, torch makes a constant.
    batch = move(rows.take(np.arange(3) % len(rows)), detector.device_, None, copy=True)
    n_rows = {0: torch.export.Dim.DYNAMIC}
    shapes = dict.fromkeys(batch, n_rows) if rows.is_named else n_rows
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
            names = list(batch) if rows.is_named else ["X"]
            converted: Any = torch.onnx.export(
                program, input_names=names, output_names=["score", "decision"], verbose=False
            )
            content.write(converted.model_proto.SerializeToString())
    with replacing(path) as draft, open(draft, "wb") as file:
        file.write(content.getbuffer())


def import_onnxscript():
    """Raise unless what torch exports to ONNX by is installed."""
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'skood.export with format="onnx" needs onnxscript: pip install onnxscript'
        ) from error
