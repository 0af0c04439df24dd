"""Dask collections, told from arrays and handed on to `skood.distributed`."""

import functools
import sys


def is_dask(X):
    """Tell a dask collection without importing dask: who has one has imported it."""
    dask = sys.modules.get("dask")
    return dask is not None and dask.is_dask_collection(X)


def lazy(method):
    """Let a method of a fitted estimator return a lazy dask array for dask X, block by block."""

    @functools.wraps(method)
    def wrapper(self, X):
        if is_dask(X):
            from skood import distributed

            return distributed.map_rows(self, method.__name__, X)
        return method(self, X)

    return wrapper
