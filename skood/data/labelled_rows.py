"""The rows that a method learns from, and their classes."""

from skood.data.labels import encode_labels, is_label_map


class LabelledRows:
    """The in-distribution rows of X and their classes.

    Parameters
    ----------
    rows : Rows
        All rows.
    y : array-like of shape (n_samples,) or (n_samples, H, W), or None
        Class labels, negative for rows that are left out; or labels of pixels.
    least : int, default=2
        Fewer in-distribution rows are an error.

    Attributes
    ----------
    classes : ndarray of shape (n_classes,) or None
        The labels, sorted.
    class_indices : ndarray of shape (n_in_distribution,)
        Each row's position in `classes`.
    maps : array of shape (n_samples, H, W) or None
        The labels of pixels.
    """

    def __init__(self, rows, y, least=2):
        self._rows = rows
        self.maps = y if is_label_map(y) else None
        y = None if is_label_map(y) else y
        self._index, self.classes, self.class_indices = encode_labels(y, len(rows), least)
        self.dtype, self.device, self.is_named = rows.dtype, rows.device, rows.is_named
        self.row_shape, self.namespace, self.n_samples = rows.row_shape, rows.namespace, len(self)
        self.native_device, self.like = rows.native_device, rows.like

    def __len__(self):
        return len(self._index)

    def take(self, positions=None):
        """Return these in-distribution rows, all by default, in X's own dtype on the CPU."""
        index = self._index if positions is None else self._index[positions]
        # All rows need no copy.
        return self._rows.take(slice(None) if len(index) == len(self._rows) else index)

    def labels_of(self, positions):
        """Return labels of pixels, or None; classes, or None, and the class index of each row."""
        maps = None if self.maps is None else self.maps[positions]
        return maps, self.classes, self.class_indices[positions]

    def head(self, n_rows):
        """Return the first of them."""
        return self._rows.take(self._index[:n_rows])

    def n_batches(self, batch_size):
        """Return the number of batches."""
        return -(-len(self) // batch_size)

    def batches(self, batch_size, **how):
        """Yield ``(positions, batch)``, as `Rows` does."""
        return self._rows.batches(batch_size, rows=self._index, **how)
