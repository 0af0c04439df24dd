"""What `model` may be, and how a network is cut without touching the user's."""

from skood.network.ensemble import NetworkEnsemble
from skood.network.layers import closest_names
from skood.network.modules import private_copy
from skood.network.network import Network
from skood.network.splitting import split

__all__ = [
    "Network",
    "NetworkEnsemble",
    "closest_names",
    "private_copy",
    "split",
]
