"""Pages that need a package which the tests do not install are skipped without it."""

from importlib.util import find_spec

import pytest

NEEDS = {
    "datasets.md": "datasets",
    "hugging_face.md": "transformers",
    "layer_names.md": "transformers",
    "lightning.md": "lightning",
    "mlflow.md": "mlflow",
    "sentence_embeddings.md": "sentence_transformers",
}


def pytest_collection_modifyitems(items):
    """Skip what cannot be imported."""
    for item in items:
        package = item.path.parent.name == "libraries" and NEEDS.get(item.path.name)
        if package and find_spec(package) is None:
            item.add_marker(pytest.mark.skip(reason=f"needs {package}"))
