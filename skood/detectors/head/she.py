"""SHE: similarity to the mean of the training rows of the predicted class, or to each of them."""

from numbers import Real

from skood._compat import Interval, StrOptions
from skood.detectors.head.hopfield import HopfieldScorer
from skood.detectors.head.patterns import PatternScorer
from skood.estimators.kinds import HeadDetector, KeepsBank
from skood.estimators.network_estimator import PoolsLayer
from skood.estimators.parameters import param


class SHEDetector(KeepsBank, PoolsLayer, HeadDetector):
    r"""Similarity to the training rows of the predicted class, by their mean: simplified Hopfield.

    With the mean :math:`\mu_c` of the training rows of class c that the network predicts right, and
    the predicted class :math:`\hat y`, the score is :math:`\langle h, \mu_{\hat y} \rangle`. With
    ``patterns="all"`` it is :math:`\log \sum_i e^{\beta \langle h_i, h \rangle}` over these rows of
    :math:`\hat y`: the energy of a modern Hopfield network that has memorised them.

    Parameters
    ----------
    layer : str, default=None
        The submodule whose output is the feature vector, maps and tokens averaged over their
        positions; tokens that are 0 in ``X["attention_mask"]`` do not count. None: what enters the
        last linear layer. The logits stay the network's.
    metric : {"inner_product", "cosine", "euclidean"}, default="inner_product"
        The similarity to the mean: :math:`\langle h, \mu_c \rangle`, its cosine, or
        :math:`-\|h - \mu_c\|_2`. The inner product, the paper's, follows the length of the
        features. The cosine is better on digits (noise .995 for .890) and on CIFAR-10 (noise .996
        for .865), but not against MNIST (.945 for .998), which looks empty to that network.
    patterns : {"mean", "all"}, default="mean"
        The means of the classes, or all rows, which takes ``metric="inner_product"`` and
        ``assign="predicted"``.
    beta : float, default=0.01
        The inverse temperature :math:`\beta` of ``patterns="all"``, in units of one over a squared
        feature. Where :math:`\beta \|h\|^2` is far below 1, as of unit rows, the energy tells
        little but how many rows a class has.
    assign : {"predicted", "any", "softmax"}, default="predicted"
        Whose pattern counts: the predicted class's, the most similar one, or all, weighted by the
        softmax of the logits. For the last the means are those of all rows of a label, and of
        length 1 for the inner product.
    bank_size : int, float or None, default=None
        How many training rows ``patterns="all"`` keeps, drawn at random; a float is a share. None:
        all, of pixels 20 000.
    random_state : int, RandomState or None, default=None
        Draws the bank, and the k-means clusters that stand in for classes where ``model=None``
        gets no y.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps features, or features and logits, to scores; its buffers are ``patterns`` (n_classes,
        n_features) and ``has_rows`` (n_classes,), or ``bank`` (n_bank, n_features), sorted by
        ``bank_classes`` (n_bank,).

    See Also
    --------
    CosineDetector : Compares with the means of all classes, of rows of any prediction.

    Notes
    -----
    Labels are compared with predictions: those that are whole numbers are the numbers of the
    logits, those of a `FrozenEstimator` its classes. Without y the predicted class stands in. Of a
    class of which no row is predicted right, which is warned of, all rows of the label count; one
    without rows cannot be the predicted class. For the threshold each training row is left out of
    its class, in closed form; a class that loses its only row counts as one without rows, with
    ``patterns="all"`` also one that loses the only row that is predicted right.

    pytorch-ood and OpenOOD compute the same, where each class has a row that is predicted right;
    OpenOOD has `metric` too. ``assign="any"`` is oodeel's, which divides by the number of features,
    ``assign="softmax"`` the package detectors' Projection. The authors' script for ImageNet
    averages running means.

    References
    ----------
    Zhang et al., "Out-of-Distribution Detection based on In-Distribution Data Patterns Memorization
    with Modern Hopfield Energy", ICLR 2023.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skood import SHEDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> detector = SHEDetector(metric="cosine").fit(X, y)
    >>> detector.predict([[5.1, 3.5, 1.4, 0.2], [0.0, 9.0, 0.0, 9.0]])
    array([ 1, -1])
    """

    metric: str = param(
        StrOptions({"inner_product", "cosine", "euclidean"}), default="inner_product"
    )
    patterns: str = param(StrOptions({"mean", "all"}), default="mean")
    beta: float = param(Interval(Real, 0, None, closed="neither"), default=0.01)
    assign: str = param(StrOptions({"predicted", "any", "softmax"}), default="predicted")

    def _build(self, network):
        body, scorer = super()._build(network)
        scorer.known = network.classes
        return body, scorer

    def _make_scorer(self, head):
        if self.patterns == "mean":
            return PatternScorer(head, self.metric, self.assign)
        if (self.metric, self.assign) != ("inner_product", "predicted"):
            raise ValueError(
                f"patterns='all' takes metric='inner_product' and assign='predicted', got "
                f"{self.metric!r} and {self.assign!r}.\nLeave these, or use patterns='mean'."
            )
        return HopfieldScorer(head, self.beta, self.bank_size)
