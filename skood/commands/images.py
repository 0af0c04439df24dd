"""Images and the network that they go through, as several commands take them."""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from skood.datasets import load_image_list
from skood.datasets.images import import_pillow, to_tensor
from skood.network.programs import read_program

BATCH_ROWS = 128
# Those that mean nothing to other rows, which may have a network too.
IMAGE_OPTIONS = ("root", "size", "mean", "std")


def add_image_options(parser):
    """Add what says how images are read, and the network."""
    group = parser.add_argument_group(
        "images",
        "A folder that holds a folder of images for each class, or images alone; or a .txt list\n"
        "in OpenOOD's format, a line 'path label' for each image.",
    )
    group.add_argument(
        "--network",
        metavar="PT2",
        help="the trained network that rows go through first, written by torch.export.save",
    )
    group.add_argument(
        "--root", metavar="FOLDER", help="where the paths in lists start (default: beside the list)"
    )
    group.add_argument(
        "--size",
        type=size,
        metavar="PIXELS",
        help="scale and crop images to squares of this size (default: as they are)",
    )
    for name, kind, what in (
        ("mean", float, "subtracted from"),
        ("std", divisor, "that divides"),
    ):
        group.add_argument(
            f"--{name}",
            nargs=3,
            type=kind,
            metavar=("R", "G", "B"),
            help=f"{what} pixels between 0 and 1, as in training (default: none)",
        )


def size(text):
    """Parse --size."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels from 1")
    return int(text)


def divisor(text):
    """Parse a number of --std."""
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return float(text)


def read_network(path):
    """Return the network of --network; None without."""
    try:
        return None if path is None else read_program(path)
    except OSError as error:
        raise ValueError(f"cannot read {path!r}: {error.strerror}") from error


def are_images(path):
    """Tell a folder or a list of images from a file of rows."""
    return Path(path).is_dir() or Path(path).suffix.lower() == ".txt"


def load_images(path, options):
    """Return the images of a folder or of a list as a Dataset."""
    path, how = Path(path), Transform(path, options.size, options.mean, options.std)
    if path.is_dir():
        return load_image_list(path, transform=how)
    return load_image_list(options.root or path.parent, path, transform=how)


class Transform:
    """Make a tensor of an image: scaled, cropped, normalised where that is asked for."""

    def __init__(self, path, size, mean, std):
        self.path, self.size, self.first = path, size, None
        self.mean, self.std = (
            None if values is None else torch.tensor(values)[:, None, None]
            for values in (mean, std)
        )

    def __call__(self, image):
        """Return a tensor of shape (3, H, W)."""
        if self.size is not None:
            from PIL import ImageOps

            # The shorter side is scaled, the middle is kept.
            image = ImageOps.fit(image, (self.size, self.size), import_pillow().Resampling.BILINEAR)
        self.first = self.first or image.size
        if image.size != self.first:
            sizes = " and of ".join(f"{w} × {h}" for w, h in (self.first, image.size))
            raise ValueError(f"{self.path} has images of {sizes} pixels: --size makes them equal")
        pixels = to_tensor(image)
        pixels = pixels if self.mean is None else pixels - self.mean
        return pixels if self.std is None else pixels / self.std


class Counted(Dataset):
    """Images that move a progress bar as they are read."""

    def __init__(self, images, bar):
        self.images, self.bar = images, bar

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.bar.update()
        return self.images[index]


class ImageRows:
    """Images in batches, with their labels, as rows of other files are read."""

    def __init__(self, path, options):
        self.path, self.images = path, load_images(path, options)
        self.n_rows = len(self.images)

    def chunks(self, n_bytes):
        """Yield batches and their labels, None for images alone."""
        for batch in DataLoader(self.images, BATCH_ROWS):
            yield batch if isinstance(batch, (list, tuple)) else (batch, None)

    def names(self, start, stop):
        """Return the paths of some images."""
        return self.images.paths[start:stop]
