"""What the documentation tells to do, done to the letter."""

import doctest
import importlib
import re
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch.nn.functional import binary_cross_entropy, normalize

import skood.detectors
from skood import GMMDetector, GradNormDetector, NNGuideDetector
from skood.testing import check_detector
from tests.networks import MLP, seeded
from tests.registry import DEFAULTS, each

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.mark.parametrize(
    ("name", "most_lines", "most_code"), [("CosineDetector", 65, 45), ("EnergyDetector", 60, 15)]
)
def test_adding_a_method(tmp_path, monkeypatch, name, most_lines, most_code):
    page = (DOCS / "developing" / "adding_a_method.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (method,) = [block for block in blocks if f"class {name}(" in block]
    without_docstrings = re.sub(r'r?"""(.|\n)*?"""', "", method)
    assert len(method.splitlines()) <= most_lines
    assert sum(bool(line.strip()) for line in without_docstrings.splitlines()) <= most_code
    # pickle finds the class by the module's name.
    (tmp_path / f"page_of_{name}.py").write_text(method)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(f"page_of_{name}")
    detector = getattr(module, name)
    # The page shows how to import it once it is one of skood's.
    monkeypatch.setattr(skood.detectors, name, detector, raising=False)
    assert doctest.testmod(module).attempted > 2 and not doctest.testmod(module).failed
    with warnings.catch_warnings():
        # What a check cannot do here, such as a GPU's, is warned of.
        warnings.simplefilter("ignore")
        results = check_detector(detector())
    statuses = [status for _, status in results]
    assert statuses.count("passed") > 100 and set(statuses) == {"passed", "skipped"}


@pytest.mark.parametrize(
    ("script", "given"), [("claims", r"(?!_)"), ("claims_on_real_data", r"\s+FOLDER")]
)
def test_claims_that_pages_name(script, given):
    """Each is one that the command knows, and it knows no claim that no page names."""
    pages = " ".join(page.read_text() for page in (ROOT / "README.md", *DOCS.glob("**/*.md")))
    commands = re.findall(rf"python\s+-m\s+tests\.{script}{given}([\w\s]*)`", pages)
    code = (ROOT / "tests" / f"{script}.py").read_text()
    claims = re.findall(r"\w+(?=[,\]])", re.search(r"CLAIMS = \[(.*?\])", code, re.DOTALL)[1])
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


@each(DEFAULTS)
@pytest.mark.filterwarnings("ignore")
def test_the_type_of_scores_is_told_by_X(detector, iris):
    """As the page on GPUs says: float32 for float32, else float64."""
    X, y = iris
    for net_type in (None, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        net = net_type and seeded(MLP, in_features=4, classes=3).to(net_type)
        for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32):
            rows = torch.tensor(X).to(kind)
            scores = clone(detector).set_params(model=net).fit(rows, y).score_samples(rows)
            assert scores.dtype == (np.float32 if kind == torch.float32 else np.float64)


# The releases of pytorch-ood, each detector as its code has it.


def gaussians(X, y):
    """Yield for each class the log-likelihood with its share, and the squared distance."""
    for label in y.unique():
        rows = X[y == label]
        covariance = torch.cov(rows.T, correction=0) + 1e-6 * torch.eye(X.shape[1])
        normal = torch.distributions.MultivariateNormal(rows.mean(0), covariance)
        centred = X - rows.mean(0)
        distance = (centred @ covariance.inverse() * centred).sum(1)
        yield normal.log_prob(X) + np.log(len(rows) / len(X)), distance


def gradient_norms(net, X, loss):
    """Return the sum of absolute gradients of all parameters, row by row."""
    norms = []
    for row in X:
        gradients = torch.autograd.grad(loss(net(row[None])), list(net.parameters()))
        norms.append(sum(gradient.abs().sum() for gradient in gradients))
    return torch.stack(norms)


@pytest.mark.parametrize("release", ["0.3.3", "0.4.0"])
def test_recipes_for_the_releases_of_pytorch_ood(release, iris):
    X, y = map(torch.as_tensor, iris)
    net = seeded(MLP, in_features=4, classes=3).double()
    features, head = net.relu(net.hidden(X)).detach(), net.fc
    unit, energy = normalize(features), head(features).logsumexp(1).detach()
    likelihoods, distances = (torch.stack(parts) for parts in zip(*gaussians(X, y), strict=True))
    if release == "0.4.0":
        gmm = likelihoods.logsumexp(0)
        neighbours = (unit @ (unit * energy[:, None]).T).topk(10).values
        loss = lambda logits: -logits.log_softmax(1).mean()  # noqa: E731
        recipes = {}, {}, {"loss": "kl"}
    else:
        gmm = -distances.amin(0) / X.shape[1]
        neighbours = (unit @ (normalize(unit * energy[:, None])).T).topk(10).values
        loss = lambda z: binary_cross_entropy(  # noqa: E731
            z.softmax(1), torch.full_like(z, 1 / 3), reduction="sum"
        )
        recipes = {"criterion": "mahalanobis"}, {"energy_weighted": False}, {"loss": "bce"}
    expected = gmm, neighbours.mean(1) * energy, gradient_norms(net, X[::10], loss)
    for detector, rows, scores in zip(
        (
            GMMDetector(reg_covar=1e-6, **recipes[0]),
            NNGuideDetector(net, **recipes[1]),
            GradNormDetector(net, params="all", **recipes[2]),
        ),
        (X, X, X[::10]),
        expected,
        strict=True,
    ):
        found = detector.fit(X, y).score_samples(rows)
        np.testing.assert_allclose(found, scores.numpy(), rtol=1e-8)
