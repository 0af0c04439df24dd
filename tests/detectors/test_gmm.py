"""Class-conditional Gaussians: instances, plain reference, parity."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn import config_context
from sklearn.covariance import EmpiricalCovariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import Normalizer
from torch.utils._python_dispatch import TorchDispatchMode

from skood import GMMDetector
from skood.learning import gaussians
from tests import references as ref
from tests.detectors import Method
from tests.networks import MLP, SmallCNN, WeightNormed, seeded
from tests.parity import (
    DTYPES,
    SEEDS,
    assert_parity,
    blobs,
    cast,
    has_power,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*is singular")

METHOD = Method(
    settings={
        "default": GMMDetector(),
        "tied": GMMDetector(covariance_type="tied", criterion="mahalanobis"),
        "diag": GMMDetector(covariance_type="diag", reg_covar=1e-6),
        "spherical": GMMDetector(covariance_type="spherical"),
        "mahalanobis": GMMDetector(criterion="mahalanobis", reg_covar=0.1, batch_size=7),
    },
    in_networks={
        "default": GMMDetector(reg_covar=0.1),
        "conv1": GMMDetector(layer="conv1", reg_covar=0.1, normalize=True),
    },
)


# The reference


def gmm_auto_reg_covar(Z, y=None):
    """Compute 0.01 * (total within-class sum of squares) / (n D)."""
    Z = ref.as_array(Z)
    y = np.zeros(len(Z)) if y is None else np.asarray(y)
    squares = 0.0
    for label in np.unique(y):
        rows = Z[y == label]
        squares += ((rows - rows.mean(axis=0)) ** 2).sum()
    return 0.01 * squares / Z.size


def gmm_fit(Z, y=None, covariance_type="full", reg_covar="auto"):
    """Fit one Gaussian per class: mean, covariance (divided by n_k) + reg_covar I, weight n_k/n.

    "tied": sum_k (n_k/n) Sigma_k. "diag": its diagonal. "spherical": the mean of the variances.
    y=None: one Gaussian. `reg_covar` is added whatever the type, and nothing else is done about
    singular covariances. Returns classes, weights (K,), means (K, D) and covariances (K, D, D).
    """
    Z = ref.as_array(Z)
    n, D = Z.shape
    y = np.zeros(n) if y is None else np.asarray(y)
    reg_covar = gmm_auto_reg_covar(Z, y) if isinstance(reg_covar, str) else reg_covar
    classes = np.unique(y)
    weights, means, covariances = [], [], []
    for label in classes:
        rows = Z[y == label]
        mean = rows.mean(axis=0)
        covariance = np.zeros((D, D))
        for row in rows:
            covariance += np.outer(row - mean, row - mean) / len(rows)
        weights.append(len(rows) / n)
        means.append(mean)
        covariances.append(covariance)
    if covariance_type == "tied":
        pooled = sum(w * covariance for w, covariance in zip(weights, covariances, strict=True))
        covariances = [pooled for _ in classes]
    elif covariance_type == "diag":
        covariances = [np.diag(np.diag(covariance)) for covariance in covariances]
    elif covariance_type == "spherical":
        covariances = [np.diag(covariance).mean() * np.eye(D) for covariance in covariances]
    elif covariance_type != "full":
        raise ValueError(covariance_type)
    return {
        "classes": classes,
        "weights": np.array(weights),
        "means": np.array(means),
        "covariances": np.array(covariances) + reg_covar * np.eye(D),
        "reg_covar": float(reg_covar),
    }


def gmm_scores(fit, Z, criterion="log_likelihood"):
    """Score log sum_k pi_k N(z | mu_k, Sigma_k); or -min_k Mahalanobis^2 / D ("mahalanobis")."""
    scores = []
    for z in ref.as_array(Z):
        values = []
        for weight, mean, covariance in zip(
            fit["weights"], fit["means"], fit["covariances"], strict=True
        ):
            if criterion == "log_likelihood":
                values.append(np.log(weight) + multivariate_normal.logpdf(z, mean, covariance))
            elif criterion == "mahalanobis":
                values.append((z - mean) @ np.linalg.solve(covariance, z - mean) / len(z))
            else:
                raise ValueError(criterion)
        scores.append(logsumexp(values) if criterion == "log_likelihood" else -min(values))
    return np.array(scores)


def gmm_leave_one_out(
    Z, y=None, covariance_type="full", reg_covar="auto", criterion="log_likelihood"
):
    """Score each row by a fit that lacks it; "auto" is settled once, on all rows.

    A class of one row is gone when that row is left out; all weights are refitted too.
    """
    Z = ref.as_array(Z)
    y = np.zeros(len(Z)) if y is None else np.asarray(y)
    reg_covar = gmm_auto_reg_covar(Z, y) if isinstance(reg_covar, str) else reg_covar
    scores = []
    for i in range(len(Z)):
        others = np.arange(len(Z)) != i
        fit = gmm_fit(Z[others], y[others], covariance_type, reg_covar)
        scores.append(gmm_scores(fit, Z[[i]], criterion)[0])
    return np.array(scores)


# The reference agrees with what was found without it


@pytest.fixture
def clusters():
    """Draw 60 rows of three classes with unlike covariances and sizes."""
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1, 2], [30, 18, 12])
    Z = rng.normal(size=(60, 4)) * np.array([0.5, 1.0, 2.0])[y, None]
    return Z @ rng.normal(size=(4, 4)) + 2.0 * y[:, None], y


def mixture_of(fit, covariance_type):
    """Build scikit-learn's mixture with the fitted parameters, precisions by explicit inverse."""
    mixture = GaussianMixture(len(fit["weights"]), covariance_type=covariance_type)
    mixture.weights_, mixture.means_ = fit["weights"], fit["means"]
    factors = [np.linalg.cholesky(np.linalg.inv(c)) for c in fit["covariances"]]
    mixture.precisions_cholesky_ = {
        "full": np.array(factors),
        "tied": factors[0],
        "diag": np.array([np.diag(factor) for factor in factors]),
        "spherical": np.array([factor[0, 0] for factor in factors]),
    }[covariance_type]
    return mixture


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("reg_covar", ["auto", 0.0, 0.3])
def test_gmm_equals_sklearn(clusters, covariance_type, reg_covar):
    """The log-likelihood equals that of scikit-learn's mixture with the same parameters."""
    Z, y = clusters
    fit = gmm_fit(Z, y, covariance_type, reg_covar)
    X = np.random.default_rng(5).normal(size=(25, 4)) * 3
    got = gmm_scores(fit, X)
    expected = mixture_of(fit, covariance_type).score_samples(X)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    assert has_power(got)
    assert has_power(gmm_scores(fit, X, "mahalanobis"))


def test_gmm_parameters(clusters):
    """Moments equal numpy's and scikit-learn's, and the automatic ridge is what METHODS says."""
    Z, y = clusters
    means = np.array([Z[y == k].mean(axis=0) for k in range(3)])
    reg_covar = 0.01 * np.mean((Z - means[y]) ** 2)
    full = gmm_fit(Z, y)
    np.testing.assert_allclose(full["reg_covar"], reg_covar, rtol=1e-12)
    np.testing.assert_allclose(full["weights"], [0.5, 0.3, 0.2])
    np.testing.assert_allclose(full["means"], means, rtol=1e-12)
    ridge = reg_covar * np.eye(4)
    for k in range(3):
        expected = EmpiricalCovariance().fit(Z[y == k]).covariance_ + ridge
        np.testing.assert_allclose(full["covariances"][k], expected, rtol=1e-10)
        spherical = np.mean(Z[y == k].var(axis=0)) * np.eye(4) + ridge
        np.testing.assert_allclose(
            gmm_fit(Z, y, "spherical")["covariances"][k], spherical, rtol=1e-10
        )
    lda = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True).fit(Z, y)
    tied = gmm_fit(Z, y, "tied", 0.0)["covariances"]
    np.testing.assert_allclose(tied, np.stack([lda.covariance_] * 3), rtol=1e-10)
    np.testing.assert_allclose(gmm_auto_reg_covar(1000 * Z + 7, y), 1e6 * reg_covar, rtol=1e-10)
    single = gmm_fit(Z, None, "full", 0.0)
    np.testing.assert_allclose(single["covariances"][0], np.cov(Z.T, bias=True), rtol=1e-10)


def test_gmm_mahalanobis(clusters):
    """The criterion is -min of scikit-learn's squared Mahalanobis distances / D."""
    Z, y = clusters
    distances = [EmpiricalCovariance().fit(Z[y == k]).mahalanobis(Z) for k in range(3)]
    got = gmm_scores(gmm_fit(Z, y, "full", 0.0), Z, "mahalanobis")
    np.testing.assert_allclose(got, -np.min(distances, axis=0) / 4, rtol=1e-9)


def test_gmm_leave_one_out_closed_form(clusters):
    """Without a ridge, refitting equals METHODS' closed form d -> n d / (n - 1 - d)."""
    Z, _ = clusters
    n, D = Z.shape
    fit = gmm_fit(Z, None, "full", 0.0)
    d = -D * gmm_scores(fit, Z, "mahalanobis")
    left_out = n * d / (n - 1 - d)
    got = gmm_leave_one_out(Z, None, "full", 0.0, "mahalanobis")
    np.testing.assert_allclose(got, -left_out / D, rtol=1e-9)
    log_det = np.linalg.slogdet(fit["covariances"][0])[1]
    log_det = log_det + D * np.log(n / (n - 1)) + np.log(1 - d / (n - 1))
    expected = -0.5 * (D * np.log(2 * np.pi) + log_det + left_out)
    got = gmm_leave_one_out(Z, None, "full", 0.0)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("criterion", ["log_likelihood", "mahalanobis"])
@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_gmm_leave_one_out(clusters, covariance_type, criterion):
    """Left-out scores vary and are lower than in-sample ones on average."""
    Z, y = clusters
    got = gmm_leave_one_out(Z, y, covariance_type, "auto", criterion)
    plain = gmm_scores(gmm_fit(Z, y, covariance_type), Z, criterion)
    assert has_power(got)
    assert got.mean() < plain.mean()


# The detector equals it


COVARIANCES = pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])


CRITERIA = pytest.mark.parametrize("criterion", ["log_likelihood", "mahalanobis"])


@DTYPES
@COVARIANCES
@CRITERIA
@pytest.mark.parametrize("reg_covar", ["auto", 0, 0.3])
@pytest.mark.parametrize("labels", [True, False])
def test_gmm_on_features(data, covariance_type, criterion, reg_covar, labels, dtype):
    Z, y, X_new = (torch.as_tensor(a).to(dtype).numpy() if a.ndim > 1 else a for a in data)
    y = y if labels else None
    settings = {"covariance_type": covariance_type, "reg_covar": reg_covar}
    detector = GMMDetector(criterion=criterion, **settings).fit(Z, y)
    expected = gmm_scores(gmm_fit(Z, y, **settings), X_new, criterion)
    assert_parity(detector.score_samples(X_new), expected, dtype)


@DTYPES
@COVARIANCES
@pytest.mark.parametrize("layer", [None, "conv1", "bn"])
def test_gmm_in_a_network(X, covariance_type, layer, dtype):
    net, X_train, X_new = cast(seeded(SmallCNN), X, dtype)
    y = np.arange(len(X_train)) % 2
    H_train, H = (ref.features(net, x, layer) for x in (X_train, X_new))
    if layer:
        H_train, H = H_train.mean((2, 3)), H.mean((2, 3))
    settings = {"covariance_type": covariance_type, "reg_covar": 0.2}
    scores = GMMDetector(net, layer, **settings).fit(X_train, y).score_samples(X_new)
    assert_parity(scores, gmm_scores(gmm_fit(H_train, y, **settings), H), dtype)


def test_gmm_of_ill_conditioned_float32_at_an_offset(rng):
    """Condition 1e8 and 1000 standard deviations away from 0."""
    scales = np.geomspace(1e-4, 1, 8)
    mixing = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    Z = ((rng.normal(size=(400, 8)) * scales) @ mixing + 1000).astype(np.float32)
    exact = GMMDetector(reg_covar=0).fit(Z.astype(np.float64)).score_samples(Z.astype(np.float64))
    np.testing.assert_allclose(GMMDetector(reg_covar=0).fit(Z).score_samples(Z), exact, rtol=1e-4)


@CRITERIA
def test_gmm_in_float32_is_as_good_as_float64(rng, criterion):
    """At condition 1e8 and 1000 standard deviations from 0, within 1e-4 of a score or of D."""
    D, y = 80, np.arange(1200) % 3
    mixing = np.linalg.qr(rng.normal(size=(D, D)))[0] * np.geomspace(1e-4, 1, D)[:, None]
    shapes = np.eye(D) + 0.3 * rng.normal(size=(3, D, D)) / np.sqrt(D)
    Z = (rng.normal(size=(1200, 1, D)) @ shapes[y])[:, 0]
    Z = ((Z + 2 * rng.normal(size=(3, D))[y]) @ mixing + 1000).astype(np.float32)
    new = np.vstack([Z, Z + 10 * Z.std(0) * rng.normal(size=Z.shape)]).astype(np.float32)
    detector = GMMDetector(reg_covar=0, criterion=criterion)
    scores = detector.fit(Z, y).score_samples(new)
    assert detector.scorer_.factors.dtype == torch.float32
    exact = detector.fit(Z.astype(np.float64), y).score_samples(new.astype(np.float64))
    size = 1 if criterion == "mahalanobis" else D
    assert (np.abs(scores - exact) <= 1e-4 * np.maximum(np.abs(exact), size)).all()


@DTYPES
@CRITERIA
def test_gmm_of_classes_of_different_shape(rng, criterion, dtype):
    """Each class is flat in its own direction: no coordinates in which float32 would do."""
    D, y = 6, np.arange(90) % 3
    scales = np.ones((3, D))
    scales[range(3), range(3)] = 1e-3
    Z = rng.normal(size=(90, D)) * scales[y] + rng.normal(size=(3, D))[y]
    Z, new = (torch.as_tensor(a).to(dtype).numpy() for a in (Z, rng.normal(size=(40, D))))
    detector = GMMDetector(reg_covar=0, criterion=criterion).fit(Z, y)
    assert detector.scorer_.factors.dtype == torch.float64
    expected = gmm_scores(gmm_fit(Z, y, reg_covar=0), new, criterion)
    assert_parity(detector.score_samples(new), expected, dtype)


@DTYPES
@CRITERIA
@pytest.mark.parametrize(
    ("separation", "off", "finished"),
    [(0, 0, []), (3, 0, ["best", "near"]), (3, 30, ["best"])],
    ids=["overlapping", "separated", "far off"],
)
def test_gmm_leaves_out_only_what_does_not_matter(
    rng, monkeypatch, criterion, dtype, separation, off, finished
):
    """Classes are dropped by the first 64 dimensions, where those tell enough of them apart."""
    D, y = 160, np.arange(1600) % 8
    shapes = np.eye(D) + 0.5 * rng.normal(size=(8, D, D)) / np.sqrt(D)
    Z = (rng.normal(size=(1600, 1, D)) @ shapes[y])[:, 0] + separation * rng.normal(size=(8, D))[y]
    new = Z[:40] + off * rng.normal(size=(40, D))
    Z, new = (torch.as_tensor(a).to(dtype).numpy() for a in (Z, new))
    detector = GMMDetector(reg_covar=0.01, criterion=criterion).fit(Z, y)
    calls = []
    later = gaussians._later_squares
    monkeypatch.setattr(
        gaussians, "_later_squares", lambda *args: calls.append(args) or later(*args)
    )
    # Products of three classes, of six in float32.
    monkeypatch.setattr(gaussians, "PRODUCT_BYTES", 3 * 8 * 32 * len(new))
    scores = detector.score_samples(new)
    assert len(calls) == len(finished)
    assert_parity(scores, gmm_scores(gmm_fit(Z, y, reg_covar=0.01), new, criterion), dtype)


class LargestTensor(TorchDispatchMode):
    """Notes how many bytes the largest tensor takes that is computed."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.bytes = max(self.bytes, out.nbytes)
        return out


@COVARIANCES
def test_gmm_scores_in_blocks(rng, covariance_type):
    """They fit into working_memory, and into 64 MiB where that is more."""
    y = np.arange(40_000) % 40
    X = rng.normal(size=(len(y), 40)) + y[:, None] / 10
    scorer = GMMDetector(covariance_type=covariance_type).fit(X[:4000], y[:4000]).scorer_
    rows, found = torch.as_tensor(X), []
    for memory in (1, 100_000):
        with config_context(working_memory=memory), LargestTensor() as tensors:
            found.append(scorer(rows))
        assert tensors.bytes <= min(memory, 64) * 2**20
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


@pytest.mark.parametrize("cls", [MLP, WeightNormed])
def test_gmm_on_a_network_of_vectors(vectors, cls):
    net, Z, y, X_new = vectors(cls)
    expected = gmm_scores(gmm_fit(ref.features(net, Z), y), ref.features(net, X_new))
    assert_parity(GMMDetector(net).fit(Z, y).score_samples(X_new), expected, torch.float64)


# The threshold's scores


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("criterion", ["log_likelihood", "mahalanobis"])
@pytest.mark.parametrize("reg_covar", ["auto", 0.05, 1.0])
@pytest.mark.parametrize("labels", [True, False])
def test_gmm_leaves_one_out(left_out, few_rows, covariance_type, criterion, reg_covar, labels):
    """Exactly, with the ridge of "auto" kept from all rows."""
    Z, y = few_rows
    y = y if labels else None
    settings = {
        "covariance_type": covariance_type,
        "criterion": criterion,
        "reg_covar": reg_covar,
    }
    found = left_out(GMMDetector(**settings), Z, y)
    np.testing.assert_allclose(found, gmm_leave_one_out(Z, y, **settings), rtol=1e-8)


def test_gmm_leaves_one_out_without_a_ridge(left_out, rng):
    Z, y = rng.normal(size=(40, 3)), np.arange(40) % 2
    found = left_out(GMMDetector(reg_covar=0), Z, y)
    np.testing.assert_allclose(found, gmm_leave_one_out(Z, y, reg_covar=0), rtol=1e-8)


@pytest.mark.parametrize("criterion", ["log_likelihood", "mahalanobis"])
@pytest.mark.parametrize("separation", [0, 3])
def test_gmm_leaves_one_out_of_many_dimensions(left_out, rng, criterion, separation):
    """Where far classes are left out too, but never for the sake of the row's own class."""
    y = np.arange(60) % 6
    Z = rng.normal(size=(60, 100)) + separation * rng.normal(size=(6, 100))[y]
    settings = {"reg_covar": 0.5, "criterion": criterion}
    found = left_out(GMMDetector(**settings), Z, y)
    np.testing.assert_allclose(found, gmm_leave_one_out(Z, y, **settings), rtol=1e-8)


def test_gmm_automatic_ridge_is_close_to_refitting_it_too(left_out, rng):
    """Within 2 % of the spread of the scores; the ridge itself changes by about 1 / n."""
    Z, y = rng.normal(size=(60, 5)), np.arange(60) % 2
    found = left_out(GMMDetector(), Z, y)
    refitted = []
    for i in range(60):
        rest = np.arange(60) != i
        refitted.append(GMMDetector().fit(Z[rest], y[rest]).score_samples(Z[[i]])[0])
    assert np.abs(found - refitted).mean() < 0.02 * np.std(refitted)


# Properties


@given(seed=SEEDS, offset=st.floats(-100, 100))
@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_gmm_moves_with_affine_maps(seed, offset, covariance_type):
    X, y = blobs(seed, n=60)
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(4, 4))
    assume(np.linalg.cond(A) < 1e3)
    detector = GMMDetector(covariance_type=covariance_type, reg_covar=0)
    before = detector.fit(X, y).score_samples(X)
    after = detector.fit(X @ A + offset, y).score_samples(X @ A + offset)
    np.testing.assert_allclose(after, before - np.linalg.slogdet(A)[1], rtol=1e-6, atol=1e-6)


@given(seed=SEEDS, reg_covar=st.sampled_from(["auto", 0.0, 0.1, 10.0]))
@pytest.mark.parametrize("covariance_type", ["full", "tied", "spherical"])
@pytest.mark.parametrize("criterion", ["log_likelihood", "mahalanobis"])
def test_gmm_does_not_change_with_rotations(seed, reg_covar, covariance_type, criterion):
    X, y = blobs(seed, n=60)
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))[0]
    detector = GMMDetector(
        covariance_type=covariance_type, reg_covar=reg_covar, criterion=criterion
    )
    before = detector.fit(X, y)
    scores, offset = before.score_samples(X), before.offset_
    after = detector.fit(X @ Q, y)
    np.testing.assert_allclose(after.score_samples(X @ Q), scores, rtol=1e-8, atol=1e-8)
    assert after.offset_ == pytest.approx(offset, rel=1e-7)


@given(seed=SEEDS, factor=st.sampled_from([1e-25, 1e-5, 1e5, 1e25]))
def test_gmm_with_the_automatic_ridge_does_not_depend_on_scale(seed, factor):
    X, y = blobs(seed)
    first, second = GMMDetector().fit(X, y), GMMDetector().fit(factor * X, y)
    shift = 4 * np.log(factor)
    np.testing.assert_allclose(
        second.score_samples(factor * X) + shift, first.score_samples(X), rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_unit_rows_are_those_of_scikit_learn(covariance_type, iris):
    """Scores, thresholds and what rows are made of, and a power between; the length is lost."""
    X, y = iris
    unit = Normalizer().transform(X)
    scaled = GMMDetector(covariance_type=covariance_type, normalize=True).fit(X, y)
    plain = GMMDetector(covariance_type=covariance_type).fit(unit, y)
    np.testing.assert_allclose(scaled.score_samples(X), plain.score_samples(unit), rtol=1e-9)
    np.testing.assert_allclose(scaled.score_samples(3 * X), scaled.score_samples(X), rtol=1e-9)
    assert scaled.offset_ == pytest.approx(plain.offset_, rel=1e-9)
    parts = [detector.explain(rows) for detector, rows in ((scaled, X), (plain, unit))]
    np.testing.assert_allclose(parts[0].contributions, parts[1].contributions, atol=1e-8)
    half = GMMDetector(covariance_type=covariance_type, normalize=0.5).fit(X, y)
    rooted = X / np.sqrt(np.linalg.norm(X, axis=1, keepdims=True))
    plain.fit(rooted, y)
    np.testing.assert_allclose(half.score_samples(X), plain.score_samples(rooted), rtol=1e-9)


@pytest.mark.cuda
@pytest.mark.parametrize("n_features", [33, 129, 150])
def test_a_gpu_multiplies_several_slices_at_once(rng, n_features):
    X = rng.normal(size=(700, n_features)) @ rng.normal(size=(n_features, n_features))
    y = np.arange(700) % 3
    on_cpu, on_gpu = (GMMDetector(device=d).fit(X, y).score_samples(X) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-9)
