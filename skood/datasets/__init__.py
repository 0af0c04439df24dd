"""Data: digits that come with scikit-learn, and images from files."""

from skood.datasets.digits import load_digits_ood
from skood.datasets.images import load_image_list

__all__ = ["load_digits_ood", "load_image_list"]
