"""What the documentation tells to do, done to the letter."""

import importlib
import re
import subprocess
import warnings
from pathlib import Path

import pytest

from skood.testing import check_detector

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_adding_a_method(tmp_path, monkeypatch):
    page = (DOCS / "developing" / "adding_a_method.md").read_text()
    method, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(method.splitlines()) <= 65
    (tmp_path / "method_of_the_page.py").write_text(method)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("method_of_the_page")
    with warnings.catch_warnings():
        # What a check cannot do here, such as a GPU's, is warned of.
        warnings.simplefilter("ignore")
        results = check_detector(module.CosineDetector())
    statuses = [status for _, status in results]
    assert statuses.count("passed") > 100 and set(statuses) == {"passed", "skipped"}


def test_claims_that_pages_name():
    """Each is one that the command knows, and it knows no claim that no page names."""
    pages = " ".join(page.read_text() for page in (ROOT / "README.md", *DOCS.glob("**/*.md")))
    commands = re.findall(r"python\s+-m\s+tests\.claims([\w\s]*)`", pages)
    script = (ROOT / "tests" / "claims.py").read_text()
    claims = re.findall(r"\w+(?=,)", re.search(r"CLAIMS = \[(.*?)\]", script, re.DOTALL)[1])
    assert set(" ".join(commands).split()) == set(claims)


def test_no_file_holds_the_marks_of_an_unfinished_merge():
    try:
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs git")
    if tracked.returncode:
        pytest.skip("needs a clone of the repository")
    # A title in reStructuredText may be underlined by seven equals signs, which are no mark alone.
    marks = re.compile(rb"^(?:<{7}|>{7}|\|{7})(?: |$)", re.MULTILINE)
    names = [name for name in tracked.stdout.decode().split("\0") if name]
    found = [name for name in names if marks.search((ROOT / name).read_bytes())]
    assert len(names) > 100 and not found
