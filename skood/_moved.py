"""Modules of earlier versions under their names of then, which pickles of then hold."""

import importlib.abc
import importlib.util
import sys
from types import ModuleType

# By its name of then, the modules that hold what lay there.
MOVED = {
    "skood._gaussians": "skood.learning.gaussians skood.learning.moments",
    "skood._states": "skood.learning.states skood.learning.reservoir skood.learning.accumulated",
    "skood._testing_networks": "skood.testing.networks",
    "skood.detectors._ash": "skood.detectors.shaping.ash",
    "skood.detectors._gmm": "skood.detectors.features.gmm",
    "skood.detectors._gradnorm": "skood.detectors.gradients.gradnorm",
    "skood.detectors._nac": "skood.detectors.layers.nac",
    "skood.detectors._nnguide": "skood.detectors.head.nnguide",
}


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module by the name it had, when a pickle asks for it."""

    def find_spec(self, fullname, path=None, target=None):
        """Return how to load a module that has moved; None for others."""
        return importlib.util.spec_from_loader(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module with what is where it has moved to."""
        for name in MOVED[module.__name__].split():
            moved = vars(importlib.import_module(name))
            vars(module).update({k: v for k, v in moved.items() if not k.startswith("__")})


def find_moved_modules() -> None:
    """Let pickles of earlier versions find their classes."""
    sys.meta_path.append(MovedModules())
