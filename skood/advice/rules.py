"""Which detector to start with: what there may be, and a table of what to take."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# With fewer in the median class, neighbours are rows of other classes.
FEW_ROWS = 20
# Beyond, neighbours are looked for among a random part.
MANY_ROWS = 100_000
# Of so few values in all were measured or counted.
FEW_VALUES = 1000
# A Gaussian a class of so many entries of covariances takes 2 GiB.
MANY_ENTRIES = 2**28


@dataclass(frozen=True)
class Situation:
    """What `recommend` found.

    Parameters
    ----------
    what : {"embeddings", "head", "network", "classifier"}
        None, a linear layer, a network that is trained already, or one that ``fit`` trains.
    name : str
        Of the model, for people.
    row_shape : tuple of int
        Of a row of X; () where it is a dict.
    n_rows : int or None
        In-distribution rows; None where a stream does not tell.
    class_sizes : tuple of int
        Rows of each class, ascending; empty without labels.
    n_features : int or None
        What enters the last linear layer, or columns of X.
    has_logits, has_features, gives_maps, is_several, has_stages : bool
        Whether the model gives logits, shows what enters its last linear layer, gives logits of
        each pixel, is several networks, has maps of more than one size.
    is_signed, is_unit, is_raw : bool
        Whether features are negative somewhere, all have length 1, take few values, as pixels do.
    """

    what: str
    name: str = ""
    row_shape: tuple[int, ...] = ()
    n_rows: int | None = None
    class_sizes: tuple[int, ...] = ()
    n_features: int | None = None
    has_logits: bool = True
    has_features: bool = True
    gives_maps: bool = False
    is_several: bool = False
    has_stages: bool = False
    is_signed: bool = False
    is_unit: bool = False
    is_raw: bool = False

    @property
    def has_labels(self) -> bool:
        """Whether labels tell two classes at least."""
        return len(self.class_sizes) > 1

    @property
    def has_few_rows(self) -> bool:
        """Whether the median class has few rows."""
        is_known = self.has_labels and self.n_rows is not None
        return is_known and float(np.median(self.class_sizes)) < FEW_ROWS

    @property
    def has_many_rows(self) -> bool:
        """Whether rows are too many to compare with all."""
        return self.n_rows is not None and self.n_rows > MANY_ROWS

    @property
    def is_table(self) -> bool:
        """Whether no network seems to have made the features, so that their length tells."""
        if self.what != "embeddings" or self.n_features is None or self.is_unit:
            return False
        return self.is_raw or self.n_features <= (100 if self.is_signed else 16)

    @property
    def has_many_covariances(self) -> bool:
        """Whether a covariance for each class takes too much memory."""
        return len(self.class_sizes) * (self.n_features or 0) ** 2 > MANY_ENTRIES

    def __str__(self) -> str:
        rows = "rows" if self.n_rows is None else f"{self.n_rows:,} rows"
        shape = f" of shape {self.row_shape}" if self.row_shape else ""
        model = {"embeddings": "no network"}.get(self.what, f"the model is a {self.name}")
        parts = [f"{rows}{shape}", model]
        if self.n_features:
            kind = "length 1" if self.is_unit else "signed" if self.is_signed else "not negative"
            parts.append(f"{self.n_features:,} features, {kind}")
        if self.gives_maps:
            parts.append("logits of each pixel")
        elif not self.has_logits:
            parts.append("no logits")
        low, high = min(self.class_sizes, default=0), max(self.class_sizes, default=0)
        sizes = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        known = f"{len(self.class_sizes)} classes of {sizes} rows"
        parts.append(known if self.has_labels else "labels of one class" if high else "no labels")
        return "; ".join(parts)


@dataclass(frozen=True)
class Choice:
    """A detector, why to take it, and where not to; settings may depend on the situation."""

    name: str
    why: str
    not_for: str
    settings: dict[str, Any] = field(default_factory=dict)

    def settings_for(self, situation: Situation) -> dict[str, Any]:
        """Return the parameters to set."""
        banks = self.name == "KNNDetector" and situation.has_many_rows
        return {**self.settings, **({"bank_size": MANY_ROWS} if banks else {})}

    def text(self, model: str = "", settings: dict[str, Any] | None = None) -> str:
        """Return the call that makes it."""
        settings = self.settings if settings is None else settings
        arguments = [model] * bool(model) + [f"{name}={v!r}" for name, v in settings.items()]
        return f"{self.name}({', '.join(arguments)})"


@dataclass(frozen=True)
class Rule:
    """Where it applies, in words and as a function, and what to take there.

    `measured` says by what: tasks of ``docs/evidence.json``, a part of ``docs/situations.json``, or
    others' paper.
    """

    given: str
    labels: str
    applies: Callable[[Situation], bool]
    choices: tuple[Choice, ...]
    measured: str


MAHALANOBIS = Choice(
    "MahalanobisDetector",
    "distance to the closest class mean, at length 1: on features of networks best or nearly so, "
    "with many rows and few, and fast",
    "OOD rows that differ from others in the length of their features alone",
)
GAUSSIAN = Choice(
    "MahalanobisDetector",
    "one Gaussian around all rows, at length 1: takes no labels and no logits",
    "rows of several kinds that lie far apart",
)
PNML = Choice(
    "PNMLDetector",
    "how far the last layer could be talked into any answer: features and logits; takes no labels",
    "few rows, of which it has to learn as many directions as there are features",
)
KNN = Choice(
    "KNNDetector",
    "distance to training rows: assumes no shape of the classes and takes no labels",
    "few rows, of which the tenth neighbour is one of another class; many, all of which it keeps",
)
NEAREST = Choice(
    "KNNDetector",
    "distance to the nearest training row: takes no labels, and needs no second row like it",
    "training rows with outliers among them",
    {"k": 1},
)
NEAREST_AS_IT_IS = Choice(
    "KNNDetector",
    "distance to the nearest training row, whose length tells something; takes no labels",
    "features of different units: scale them first",
    {"k": 1, "normalize": False},
)
LAYERS = Choice(
    "LayersDetector",
    "nearness to training rows at several layers: what looks different to early ones may look "
    "alike to the last",
    "transformers, of which it takes the last features alone; very many rows, all of which it "
    "keeps at each layer",
)
CADREF = Choice(
    "CADRefDetector",
    "difference from the mean features of the predicted class, weighed by the head: of a class it "
    "learns no more than its mean",
    "embeddings of length 1, on which distances did better",
)
CLASSES = Choice(
    "GMMDetector",
    "a Gaussian of its own for each class",
    "what enters the last layer of a network, unless normalize=True scales it to length 1",
)
RESIDUAL = Choice(
    "ResidualDetector",
    "size of what lies outside of the subspace of the training rows: takes no labels",
    "OOD rows inside of that subspace",
)
VIM = Choice(
    "ViMDetector",
    "energy less the size of what lies outside of the subspace of the features; takes no labels",
    "fewer rows than features, which fill no subspace",
)
PIXELS = (
    Choice(
        "StandardizedMaxLogitDetector",
        "the largest logit, in units of its spread where its class wins",
        "classes that win in no pixel of the training rows",
    ),
    Choice(
        "EnergyDetector",
        "learns nothing, and costs a forward pass",
        "boundaries between objects, where it calls every pixel uncertain",
    ),
    Choice(
        "ReActDetector",
        "the energy after large activations are cut off",
        "signed features, of which it cuts off the large positive ones alone",
    ),
)
SEVERAL = (
    Choice(
        "DeepEnsembleDetector",
        "how much the networks disagree",
        "networks so alike that they agree on what none has seen",
    ),
    Choice(
        "EnergyDetector",
        "the energy of what they say together",
        "OOD rows with large logits: one detector on the features of each, in an "
        "EnsembleDetector, sees more",
    ),
)
LOGITS = (
    Choice(
        "GENDetector",
        "an entropy of the probabilities that minds the unlikely classes",
        "networks with a last linear layer, on whose inputs distances did better",
    ),
    Choice(
        "EnergyDetector",
        "learns nothing, and costs a forward pass",
        "networks with a last linear layer, on whose inputs distances did better",
    ),
)

# The first that applies counts.
RULES = (
    Rule(
        "a segmenter, whose logits are maps", "any", lambda s: s.gives_maps, PIXELS,
        "Jung et al., ICCV 2021",
    ),
    Rule(
        "several networks, as a `NetworkEnsemble`", "any", lambda s: s.is_several, SEVERAL,
        "Lakshminarayanan et al., NeurIPS 2017",
    ),
    Rule(
        "a network whose logits no linear layer gives", "any", lambda s: not s.has_features, LOGITS,
        "Liu et al., CVPR 2023",
    ),
    Rule(
        "a network, or its last layer, and few rows a class (below 20)", "classes",
        lambda s: s.has_few_rows and s.what != "embeddings" and s.has_logits,
        (CADREF, MAHALANOBIS, NEAREST),
        "head, 10 rows a class",
    ),
    Rule(
        "a network without logits", "classes",
        lambda s: not s.has_logits and s.has_labels,
        (MAHALANOBIS, NEAREST),
        "embeddings",
    ),
    Rule(
        "a network without logits", "none",
        lambda s: not s.has_logits,
        (NEAREST, GAUSSIAN, RESIDUAL),
        "embeddings, no labels",
    ),
    Rule(
        "a convolutional network, and up to 100,000 rows", "classes",
        lambda s: s.has_stages and s.has_labels and not s.has_many_rows,
        (LAYERS, MAHALANOBIS, PNML),
        "images, digits",
    ),
    Rule(
        "a convolutional network, and up to 100,000 rows", "none",
        lambda s: s.has_stages and not s.has_many_rows,
        (LAYERS, PNML, KNN),
        "images, digits",
    ),
    Rule(
        "a transformer, or another network with signed features", "classes",
        lambda s: s.what == "network" and s.is_signed and s.has_labels,
        (MAHALANOBIS, KNN, VIM),
        "Müller and Hein, ICML 2025",
    ),
    Rule(
        "any other network, or a last layer and its inputs", "classes",
        lambda s: s.what != "embeddings" and s.has_labels,
        (MAHALANOBIS, PNML, KNN),
        "features, compressed",
    ),
    Rule(
        "any other network, or a last layer and its inputs", "none",
        lambda s: s.what != "embeddings",
        (PNML, CADREF, NEAREST),
        "head, no labels",
    ),
    Rule(
        "a table: up to 16 features, or 100 that are signed, or few values, as pixels", "classes",
        lambda s: s.is_table and s.has_labels,
        (CLASSES, NEAREST_AS_IT_IS, MAHALANOBIS),
        "tables",
    ),
    Rule(
        "a table: up to 16 features, or 100 that are signed, or few values, as pixels", "none",
        lambda s: s.is_table,
        (NEAREST_AS_IT_IS, NEAREST),
        "tables, no labels",
    ),
    Rule(
        "embeddings, and few rows a class (below 20)", "classes",
        lambda s: s.has_few_rows,
        (MAHALANOBIS, NEAREST, RESIDUAL),
        "embeddings, 10 rows a class",
    ),
    Rule(
        "embeddings of length 1, as of sentences", "classes",
        lambda s: s.is_unit and s.has_labels and not s.has_many_covariances,
        (CLASSES, NEAREST, MAHALANOBIS),
        "embeddings of length 1",
    ),
    Rule(
        "embeddings", "classes",
        lambda s: s.has_labels,
        (MAHALANOBIS, PNML, KNN),
        "embeddings",
    ),
    Rule(
        "embeddings", "none, or one class", lambda s: True,
        (NEAREST, GAUSSIAN, RESIDUAL),
        "embeddings, no labels",
    ),
)  # fmt: skip


def choosing_table() -> str:
    """Return the rules as a table in Markdown, in the order in which they are tried."""
    rows = ["you have", "labels", "start with", "because", "not for"], ["---"] * 5
    cells = [list(row) for row in rows]
    for rule in RULES:
        model = "" if rule.given.startswith(("embeddings", "a table")) else "net"
        first = rule.choices[0]
        names = ", ".join(f"`{choice.text(model)}`" for choice in rule.choices)
        cells.append([rule.given, rule.labels, names, first.why, first.not_for])
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
