"""One file a method: its instances, its plain reference, and that it equals it."""

from dataclasses import dataclass, field

from skood.base import BaseDetector

# Of methods that need one row of logits an image.
NEEDS_VECTORS = r"needs \(n_samples, n_classes\)"


@dataclass(eq=False)
class Method:
    """What the common tests take of a method: `METHOD` in its file.

    Parameters
    ----------
    settings : dict
        Instances for features, by name. The first is the default: all common checks run on it, on
        the others those that a setting may break.
    in_networks : dict
        Instances for a network of images, `tests.networks.SmallCNN`, by name.
    agreement : float
        See `skood.testing.check_detector`.
    fixed : dict
        Parameters in place of those that `fit` settles by all rows and pieces by the first of them.
    gives_maps : bool
        Whether maps of logits are scored as they are, at their size; methods on features score
        pixels at the size of what enters the 1×1 convolution.
    refuses : dict
        What the error says on kinds of network, those of `tests.test_kinds_of_network`, on which
        the method with its defaults does not work; None where it does.
    excused : dict
        Why checks fail, by their names.
    """

    settings: dict[str, BaseDetector]
    in_networks: dict[str, BaseDetector]
    agreement: float = 1.0
    fixed: dict = field(default_factory=dict)
    gives_maps: bool = False
    refuses: dict = field(default_factory=dict)
    excused: dict = field(default_factory=dict)

    def refused(self, kind):
        """Return what the error says on a kind of network; None where the method works."""
        return self.refuses.get(kind)

    @property
    def scores_pixels(self):
        """Whether pixels of segmenters have a score each."""
        return "segmenter" not in self.refuses

    @property
    def default(self):
        """The instance with default parameters."""
        return next(iter(self.settings.values()))

    @property
    def name(self):
        """The class's name, shortened."""
        return type(self.default).__name__.removesuffix("Detector")
