"""Images from a folder, or from a list in OpenOOD's format, read when they are asked for."""

import ast
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class ImageList(Dataset):
    """Images and labels; each image is read when it is asked for.

    Parameters
    ----------
    paths : list of str
        The image files.
    labels : ndarray of shape (n_images,) or None
        None: items are images alone.
    classes : list of str or None
        The names of the labels 0, 1, ..., where folders name them.
    transform : callable or None
        See `load_image_list`.
    listed : (str, list of int), default=None
        The list, and the line of each image in it, for error messages.
    """

    def __init__(
        self,
        paths: list[str],
        labels: np.ndarray | None,
        classes: list[str] | None,
        transform: Callable[[Any], Any] | None,
        listed: tuple[str, list[int]] | None = None,
    ) -> None:
        import_pillow()
        self.paths, self.labels, self.classes = paths, labels, classes
        self.transform, self._listed = transform, listed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        path, pillow = self.paths[index], import_pillow()
        try:
            with pillow.open(path) as opened:
                if opened.mode[0] in "IF":
                    # pillow would cut all that is above 255.
                    raise ValueError(f"it has more than 8 bits (mode {opened.mode}): scale to 8")
                image = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
            # pillow raises these for damaged files.
            reason = getattr(error, "strerror", None) or error
            raise OSError(f"{self._place(index)}cannot read {path}: {reason}") from error
        image = to_tensor(image) if self.transform is None else self.transform(image)
        return image if self.labels is None else (image, int(self.labels[index]))

    def _place(self, index):
        """Return the list and the line that name an image."""
        if self._listed is None:
            return ""
        name, lines = self._listed
        return f"{name}, line {lines[index]}: "

    def __repr__(self) -> str:
        known = "no labels"
        if self.labels is not None:
            known = f"{len(np.unique(self.labels))} labels"
        return f"{type(self).__name__}({len(self)} images, {known})"


def import_pillow():
    """Return PIL.Image, which is optional."""
    try:
        import PIL.Image
    except ImportError as error:
        raise ImportError("load_image_list needs pillow: pip install pillow") from error
    return PIL.Image


def to_tensor(image):
    """Return an RGB image as a tensor of shape (3, H, W), float32 between 0 and 1."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.movedim(-1, 0).contiguous().float() / 255


def load_image_list(
    root: str | os.PathLike[str],
    list_file: str | os.PathLike[str] | None = None,
    *,
    transform: Callable[[Any], Any] | None = None,
) -> ImageList:
    r"""Load images and labels from a list in OpenOOD's format, or from a folder.

    Parameters
    ----------
    root : str or path-like
        The folder that the paths in the list start from; without a list, the one that holds a
        folder of images for each class, or images alone.
    list_file : str or path-like, default=None
        A text file with a line ``path label`` for each image, as OpenOOD's ``imglist`` files are.
        A label is an integer, negative for out-of-distribution, or a dict such as
        ``{"label": 3}``, of which nothing else is used. None: all images in `root`.
    transform : callable, default=None
        Maps a PIL image in RGB to a tensor, as the network was trained on: scaled, cropped and
        normalised. None: float32 of shape (3, H, W), between 0 and 1, in the size of the file.

    Returns
    -------
    images : ImageList
        A ``torch.utils.data.Dataset`` of (image, label), in the order of the list, or of sorted
        paths. All detectors take it as X. It has the attributes ``paths``; ``labels``, an array, or
        None for a folder of images alone, whose items have no label; and ``classes``, the names of
        the folders in the order of the labels 0, 1, ..., or None.

    Raises
    ------
    ImportError
        If pillow, which reads the images, is not installed.
    ValueError
        If a line of the list is not ``path label``, or there are no images.
    OSError
        If the list cannot be read; or later, if an image cannot: with the line that names it.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from skood.datasets import load_image_list
    >>> root = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (8, 8), "white").save(root / "a.png")
    >>> _ = (root / "test.txt").write_text("a.png 3\n")
    >>> images = load_image_list(root, root / "test.txt")
    >>> image, label = images[0]
    >>> image.shape, image.max().item(), label
    (torch.Size([3, 8, 8]), 1.0, 3)
    """
    if list_file is None:
        return _folder(Path(root), transform)
    paths, labels, numbers = [], [], []
    with open(list_file, encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                path, label = _parsed(line.strip(), f"{list_file}, line {number}")
                paths.append(os.path.join(root, path))
                labels.append(label)
                numbers.append(number)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{list_file} is no text file: it must hold lines 'path label'."
            ) from error
    if not paths:
        raise ValueError(f"{list_file} is empty: it must hold lines 'path label', one an image.")
    return ImageList(paths, np.array(labels), None, transform, (str(list_file), numbers))


def _parsed(line, place):
    """Return path and label of a line."""
    path, _, label = line.rpartition(" ")
    if line.endswith("}"):
        path, _, label = line.partition(" ")
    try:
        value = ast.literal_eval(label)
        value = value["label"] if isinstance(value, dict) else value
        if not path or isinstance(value, bool) or not isinstance(value, int):
            raise ValueError
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"{place}: {line!r:.100} is not 'path label' with an integer, such as 'cats/1.png 3'."
        ) from error
    if os.path.isabs(path):
        raise ValueError(f"{place}: {path!r:.100} must be a path relative to root.")
    return path, value


def _folder(root, transform):
    """Return the images of a folder, with its folders as classes."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    paths = [_images(folder.rglob("*")) for folder in folders]
    if (alone := _images(root.iterdir())) and any(paths):
        raise ValueError(
            f"{root} holds images beside folders of images, so that it is not clear whether "
            "folders are classes. Keep one kind, or write a list."
        )
    if empty := [folder.name for folder, found in zip(folders, paths, strict=True) if not found]:
        if any(paths):
            # The labels behind it would be those of other classes.
            raise ValueError(f"{root} has folders without images: {', '.join(empty)[:100]}.")
    if not alone and not any(paths):
        raise ValueError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))}).")
    if alone:
        return ImageList(alone, None, None, transform)
    labels = np.repeat(np.arange(len(folders)), list(map(len, paths)))
    return ImageList(sum(paths, []), labels, [folder.name for folder in folders], transform)


def _images(paths):
    """Return the images among paths, sorted, as str."""
    return sorted(str(path) for path in paths if path.suffix.lower() in SUFFIXES)
