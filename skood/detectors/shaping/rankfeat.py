"""RankFeat: activations without their part of rank 1."""

from collections.abc import Sequence

import torch
from torch import nn

from skood._warnings import warn
from skood.estimators.kinds import ClassifierDetector, LogitScorer, ScoresLogits, logit_scorer
from skood.estimators.parameters import param


def without_rank_one(matrices):
    """Subtract from each matrix the product of its first singular vectors and value.

    By the eigenvectors of the smaller of the two matrices of inner products, which takes 0.4 of the
    time of a singular value decomposition.

    Parameters
    ----------
    matrices : Tensor of shape (n, n_rows, n_columns)
        Finite numbers.

    Returns
    -------
    matrices : Tensor of the same shape and dtype
    """
    wide = matrices.shape[1] < matrices.shape[2]
    columns = (matrices.mT if wide else matrices).double()
    # Squares of large numbers would overflow, those of small ones vanish.
    size = columns.abs().amax((1, 2), keepdim=True)
    columns = columns / size.clamp(min=torch.finfo(columns.dtype).tiny)
    first = torch.linalg.eigh(columns.mT @ columns).eigenvectors[:, :, -1:]
    rest = (columns - (columns @ first) @ first.mT) * size
    return (rest.mT if wide else rest).to(matrices.dtype)


class RankOneRemoval(nn.Module):
    """Remove the part of rank 1 from the output of a layer, seen as channels × positions."""

    not_exportable = "it takes eigenvectors."

    def __init__(self, layer, channel_axis):
        super().__init__()
        self.layer, self.channel_axis = layer, channel_axis

    def forward(self, activations):
        """Return activations (n_samples, ...) without it."""
        if activations[0].numel() == activations.shape[self.channel_axis]:
            raise ValueError(
                f"The layer {self.layer!r} gives one position for each channel, of shape "
                f"{tuple(activations.shape)}: without its part of rank 1 nothing is left.\n"
                "Name layers that give maps or tokens."
            )
        by_channel = activations.movedim(self.channel_axis, 1)
        rest = without_rank_one(by_channel.flatten(2)).view(by_channel.shape)
        return rest.movedim(1, self.channel_axis)


class RankFeatScorer(nn.Module):
    """Inputs of a network → score of the mean of the logits of several changed copies of it."""

    def __init__(self, copies, logit_score):
        super().__init__()
        self.copies, self.logit_score = nn.ModuleList(copies), logit_score

    def forward(self, x):
        """Score rows."""
        return self.logit_score(torch.stack([copy(x) for copy in self.copies]).mean(0))


class RankFeatDetector(ScoresLogits, ClassifierDetector):
    r"""Remove from activations their part of rank 1, then score the logits.

    The output of a layer, as a matrix :math:`A` of channels × positions, becomes
    :math:`A - \sigma_1 u_1 v_1^\top`, without the product of its first singular value and vectors,
    which tends to be larger in OOD rows. The rest of the network gives logits; those of several
    layers, each changed alone, are averaged. The score is their energy.

    Parameters
    ----------
    layers : list of str, default=None
        The submodules whose outputs are changed. None: the last maps, whose mean over positions
        are the features. The authors and OpenOOD take the last two stages of a ResNet,
        ``["layer4", "layer3"]``, pytorch-ood one layer.
    weights : list of str, default=()
        Submodules whose weight, as a matrix of outputs × inputs, loses its part of rank 1 too:
        the authors' RankWeight. The network itself is left alone.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps inputs of the network to scores.

    Notes
    -----
    Nothing is learned from training rows but the threshold. The first singular vector is found by
    an eigendecomposition in float64, where the authors' code iterates 20 times from a random start.
    A pass through the network is made for each layer. Where the features are not the mean of maps,
    as in a vision transformer, or X holds features, the default is the energy, with a warning.

    On benchmarks it is behind energy alone (OpenOOD 1.5, ImageNet, near: 51 against 76), and on the
    digits of `skood.datasets.load_digits_ood` below chance: it is here for comparisons.

    References
    ----------
    Song et al., "RankFeat: Rank-1 Feature Removal for Out-of-distribution Detection", NeurIPS 2022.

    Examples
    --------
    >>> import torch
    >>> from skood import RankFeatDetector
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
    ...     torch.nn.Flatten(), torch.nn.Linear(8, 3),
    ... )
    >>> detector = RankFeatDetector(net).fit(torch.rand(20, 1, 6, 6))
    >>> detector.score_samples(torch.rand(4, 1, 6, 6)).shape
    (4,)
    """

    layers: Sequence[str] | None = param(list, tuple, None, default=None, kw_only=False)
    weights: Sequence[str] = param(list, tuple, default=())

    @property
    def looks_inside(self) -> bool:
        """True, as the output of a layer is changed."""
        return True

    def _build(self, network):
        score = logit_scorer(self.logit_score)
        names = self.layers
        if names is None:
            network.require_logits()
            last = network.stages()[-1]
            if last is None:
                return network.features(), LogitScorer(network.head, score)
            names = [last]
        elif not len(names):
            raise ValueError("layers is empty: name one layer or more, or pass None.")
        copies = []
        for name in names:
            network.check_layer(name)
            removal = RankOneRemoval(name, network.channel_axis(name) or 1)
            copies.append(network.require_logits().with_layer_transform(name, removal))
        for name in self.weights:
            network.check_layer(name)
            for copy in copies:
                remove_from_weight(copy.network, name)
        return nn.Identity(), RankFeatScorer(copies, score)

    def _inspect(self, scorer, inputs):
        if isinstance(scorer, LogitScorer):
            warn(
                "The features are not the mean over positions of what a layer gives, as where X "
                "holds features: RankFeat's score is then the energy alone.\nPass a whole network, "
                'and name layers that give maps or tokens, such as layers=["layer4"].'
            )


def remove_from_weight(network, name):
    """Let a private copy have a layer's weight for itself, without its part of rank 1."""
    weight = getattr(network.get_submodule(name), "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim < 2:
        raise ValueError(f"weights names {name!r}, which has no weight that is a matrix.")
    rest = without_rank_one(weight.detach().flatten(1)[None]).view(weight.shape)
    network.get_submodule(name).weight = nn.Parameter(rest, requires_grad=False)
