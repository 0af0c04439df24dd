"""Folders show the way of the data: each imports only from those to its left."""

import ast
from pathlib import Path

import pytest

import skood

ROOT = Path(skood.__file__).parent
ORDER = [
    *("data", "metrics", "network", "learning", "estimators", "detectors", "decisions"),
    *("plots", "benchmark", "distributed", "files", "testing"),
]
# Small files that anything may import, and that import no folder.
FOUNDATION = {"_compat", "_html", "_typing", "_version", "_versions", "_warnings", "functional"}
MODULES = sorted(ROOT.rglob("*.py"))


def place(module):
    """Return how far to the right a module lies; 0 for the foundation."""
    top = module.split(".")[1] if "." in module else ""
    if top in FOUNDATION:
        return 0
    return ORDER.index(top) + 1 if top in ORDER else len(ORDER) + 1


def name_of(path):
    """Return the name of a module."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Yield the modules of skood that a file imports, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "skood":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                path = ROOT.parent.joinpath(*full.split("."))
                yield full if path.with_suffix(".py").exists() or path.is_dir() else node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "skood")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_folder_imports_only_from_its_left(path):
    here = name_of(path)
    for there in imports_of(path):
        assert place(there) <= place(here), f"{here} imports {there}"


def test_no_circle_of_modules():
    edges = {name_of(path): set(imports_of(path)) for path in MODULES}
    visited, open_ = set(), []

    def visit(module):
        assert module not in open_, " → ".join([*open_[open_.index(module) :], module])
        if module in visited:
            return
        open_.append(module)
        for there in edges.get(module, ()):
            visit(there)
        visited.add(open_.pop())

    for module in edges:
        visit(module)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_is_one_room(path):
    assert len(path.read_text().splitlines()) <= 450
