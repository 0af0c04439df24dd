"""A look at what a model makes of a few rows, before anything is fitted."""

import contextlib

import torch

from skood.estimators.features import FeatureExtractor
from skood.estimators.network_estimator import computing
from skood.learning.learning import batch_rows, read


@contextlib.contextmanager
def looking_into(model, X):
    """Yield validated rows and the `Network` of a trained model, cut at its last linear layer."""
    extractor = FeatureExtractor(model)
    with computing():
        source = extractor._source(X, None)
        network, _ = extractor._take_network(source)
        yield source, network


def outputs(body, source, network):
    """Return what a body of the network makes of all rows."""
    size = batch_rows(source, network, None)
    return torch.cat([inputs[0] for _, inputs in read(source, body, network, size)])
