"""Dask collections, told from arrays and handed on."""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

# The functions on dask collections need all of skood, and dask: `skood` says where they are.
_loaders: list[Callable[[], Any]] = []

Method = TypeVar("Method", bound=Callable[..., Any])


def is_dask(X: object) -> bool:
    """Tell a dask collection without importing dask: who has one has imported it."""
    dask = sys.modules.get("dask")
    return dask is not None and dask.is_dask_collection(X)


def provide_distributed(loader: Callable[[], Any]) -> None:
    """Say how the module of functions on dask collections is loaded."""
    _loaders[:] = [loader]


def load_distributed() -> Any:
    """Return the module of functions on dask collections."""
    return _loaders[0]()


def lazy(method: Method) -> Method:
    """Let a method of a fitted estimator return a lazy dask array for dask X, block by block.

    It works on what is fitted when it is called, also in blocks that are computed later.
    """

    @functools.wraps(method)
    def wrapper(self, X):
        self = self._snapshot()
        if is_dask(X):
            return load_distributed().map_rows(self, method.__name__, X)
        return method(self, X)

    return cast(Method, wrapper)
