"""Deep ensembles: by how much several networks disagree."""

from torch import nn

from skood._compat import StrOptions
from skood.detectors.logits.passes import CRITERIA, PassesDetector, PassesScorer
from skood.estimators.parameters import param
from skood.network.ensemble import NetworkEnsemble


class Members(nn.Module):
    """The logits of the networks of an ensemble, as passes."""

    def each(self, seed, members):
        """Yield them."""
        return members.unbind(1)


class DeepEnsembleDetector(PassesDetector):
    r"""Several networks: rows on which they disagree.

    With :math:`p_r` the softmax of network r of R and :math:`\bar p` their mean, the score is
    :math:`-\frac{1}{R} \sum_r \mathrm{KL}(p_r \,\|\, \bar p)`, or another one by `criterion`.

    Parameters
    ----------
    model : NetworkEnsemble, skorch net or FrozenEstimator
        Several networks of the same classes as one, `skood.network.NetworkEnsemble`.
    criterion : str, default="mutual_information"
        - "mutual_information": as above. Of several networks the entropy of the mean is also the
          sum of this and the mean of their entropies, in which they agree that a row is unclear.
        - "msp": the log-odds of the largest :math:`\bar p_c`, as of `MSPDetector`.
        - "entropy": :math:`-\log H(\bar p)`, as of `EntropyDetector`.
        - "variance": minus the mean over classes of the variance (n - 1) of :math:`p_r`.

    Raises
    ------
    ValueError
        If `model` is no `NetworkEnsemble` of two networks at least.

    See Also
    --------
    skood.network.NetworkEnsemble : The networks; every detector on logits takes it as `model`.
    skood.ensemble.EnsembleDetector : Several detectors, such as one for the features of a network.
    MCDropoutDetector : The same of one network with dropout.

    Notes
    -----
    What needs only the mean probability are other detectors on the same model: the paper's score is
    ``MSPDetector(NetworkEnsemble(*networks))``, and OpenOOD's ``ensemble``, which averages logits,
    the same with ``average="logits"``.

    References
    ----------
    Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep
    Ensembles", NeurIPS 2017.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from skood import DeepEnsembleDetector
    >>> from skood.network import NetworkEnsemble
    >>> X, y = load_iris(return_X_y=True)
    >>> _ = torch.manual_seed(0)
    >>> nets = [torch.nn.Linear(4, 3) for _ in range(5)]
    >>> detector = DeepEnsembleDetector(NetworkEnsemble(*nets)).fit(X)
    >>> detector.score_samples(X).shape
    (150,)
    """

    criterion: str = param(StrOptions(CRITERIA), default="mutual_information")

    def _build(self, network):
        several = network.module
        if not isinstance(several, NetworkEnsemble) or len(several.networks) < 2:
            what = "None" if self.model is None else f"a {type(several).__name__}"
            what += " of one network" if isinstance(several, NetworkEnsemble) else ""
            raise ValueError(
                f"model is {what}. DeepEnsembleDetector needs two networks at least as one module: "
                "model=skood.network.NetworkEnsemble(a, b)."
            )
        body = network.require_logits(maps=True).layer("members", how=None)
        return body, PassesScorer(Members(), self.criterion, network.largest_logits.note)
