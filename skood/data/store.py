"""Tensors of many batches, in memory or in a file."""

import tempfile
from functools import cached_property

import numpy as np
import torch
from sklearn import get_config


class TensorStore:
    """Rows of tensors: in memory up to ``working_memory``, beyond that in temporary files.

    The files have no name and are gone with the store, also when the process is killed.
    """

    def __init__(self):
        self._batches, self._files, self._like = [], None, None
        self._n_bytes = 0

    def append(self, tensors):
        """Add a batch: tensors with equal numbers of rows."""
        tensors = [tensor.cpu() for tensor in tensors]
        if self._like is None:
            self._like = [tensor[:0].clone() for tensor in tensors]
        for tensor, like in zip(tensors, self._like, strict=True):
            if tensor.shape[1:] != like.shape[1:]:
                raise ValueError(
                    f"The batches have rows of shape {tuple(like.shape[1:])} and "
                    f"{tuple(tensor.shape[1:])}. Pad all rows to one size."
                )
        self._batches.append(tensors)
        self._n_bytes += sum(tensor.nbytes for tensor in tensors)
        # Half of it: to join the batches takes as much again.
        if self._files is not None or self._n_bytes > get_config()["working_memory"] * 2**19:
            self._write()

    def _write(self):
        """Move the batches to the files."""
        if self._files is None:
            self._files = [tempfile.TemporaryFile() for _ in self._like]
        for batch in self._batches:
            for file, tensor in zip(self._files, batch, strict=True):
                tensor.numpy().tofile(file)
        self._batches = []

    @cached_property
    def tensors(self):
        """All rows of each tensor, once all are added."""
        if self._files is None:
            try:
                return [torch.cat(parts) for parts in zip(*self._batches, strict=True)]
            finally:
                self._batches = []
        for file in self._files:
            file.flush()
        return [
            torch.from_numpy(np.memmap(file, like.numpy().dtype, "r+").reshape(-1, *like.shape[1:]))
            for file, like in zip(self._files, self._like, strict=True)
        ]

    def batches(self, batch_size, device):
        """Yield ``(positions, tensors)``."""
        n_rows = len(self.tensors[0])
        for start in range(0, n_rows, batch_size):
            positions = slice(start, min(start + batch_size, n_rows))
            yield positions, tuple(t[positions].to(device) for t in self.tensors)

    def take(self, rows, device):
        """Return these rows of each tensor."""
        return tuple(tensor[torch.from_numpy(rows)].to(device) for tensor in self.tensors)

    @property
    def row_bytes(self):
        """How many bytes a row takes."""
        return sum(t[0].nbytes for t in self.tensors)


def join(parts, n_rows=None):
    """Join tensors along rows, in memory that is allocated once where `n_rows` is known.

    Small results that live on between large temporaries keep the heap from shrinking: kept in a
    list, 10 MiB of scores grew the process by 760 MiB.
    """
    out, stop = None, 0
    for part in parts:
        start, stop = stop, stop + len(part)
        if out is None:
            out = part.new_empty(n_rows or len(part), *part.shape[1:])
        elif stop > len(out):
            out = torch.cat([out, out.new_empty(stop, *out.shape[1:])])
        out[start:stop] = part
    return torch.empty(0) if out is None else out[:stop]
