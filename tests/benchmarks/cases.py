"""The cases: what skood is timed against, and the targets."""

import inspect
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import NearestNeighbors
from torch import nn

from skood import ASHDetector, GMMDetector, GradNormDetector, NACDetector, NNGuideDetector
from skood.detectors.shaping.ash import Shaping
from skood.learning.learning import learn
from skood.metrics import auroc_score, fpr_at_tpr_score
from tests.benchmarks import yardsticks
from tests.benchmarks.harness import Figure, Pair, peak_mib, seconds
from tests.benchmarks.methods import imagenet, methods, roofline
from tests.networks import ResNet18, seeded

try:
    import faiss
except ImportError:
    faiss = None

ROOT = Path(__file__).parents[2]
N_CLASSES = 10
LAYERS = ["layer1", "layer2", "layer3", "layer4"]


class BankOnly(NNGuideDetector):
    """NNGuide without its threshold, for which fit compares every row with the whole bank."""

    def _fit_scorer(self, scorer, training, network, dtype):
        learn(scorer, training)
        scorer.clear_cache()
        scorer.rounding = 0.0
        return torch.zeros(2)


def normal(*shape, seed=0, dtype=torch.float32):
    """Draw standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def classes(n, n_features, n_classes=N_CLASSES, distance=1.0, seed=1, device="cpu"):
    """Draw rows of Gaussian classes, in the order of the classes, and their labels.

    Any two means lie about `distance` standard deviations apart, and are the same for each seed.
    """
    means = normal(n_classes, n_features) * distance / (2 * n_features) ** 0.5
    y = torch.arange(n) * n_classes // n
    X = normal(n, n_features, seed=seed)
    for rows, mean in zip(X.tensor_split(n_classes), means, strict=True):
        rows += mean
    return X.to(device), y.numpy()


def linear_head(n_features, device="cpu"):
    """Make a head whose logits vary by about 2."""
    head = nn.Linear(n_features, N_CLASSES)
    nn.init.normal_(head.weight, std=2 / n_features**0.5)
    return head.to(device)


def images(n, seed, device):
    """Draw images, and labels."""
    return normal(n, 3, 64, 64, seed=seed).to(device), np.arange(n) % N_CLASSES


def relative_error(a, b):
    """Return the largest difference, relative to b."""
    a, b = (np.asarray(torch.as_tensor(x).cpu(), np.float64) for x in (a, b))
    return float(np.max(np.abs(a - b) / np.abs(b)))


def heads(setting):
    """Detectors on the features of a ResNet-18, over its plain forward pass."""
    net = seeded(ResNet18, N_CLASSES).to(setting.device)
    X, _ = images(setting.pick(256, 128), 1, setting.device)
    n_bank, n_others = setting.pick((10_000, 1_000), (500, 200))
    train, y = images(n_bank, 2, setting.device)
    for name, detector, n_train in [
        ("ASH", ASHDetector(net), n_others),
        ("NNGuide", BankOnly(net), n_bank),
        ("GradNorm head", GradNormDetector(net), n_others),
        ("GMM", GMMDetector(net), n_others),
        ("NAC features", NACDetector(net), n_others),
    ]:
        detector.fit(train[:n_train], y[:n_train])
        yield Pair(
            f"{name} / forward",
            partial(detector.score_samples, X),
            partial(yardsticks.forward, net, X),
            target=1.03,
        )


def gradnorm(setting):
    """GradNorm of all parameters of a ResNet-18."""
    net = seeded(ResNet18, N_CLASSES).to(setting.device)
    X, _ = images(setting.pick(32, 16), 1, setting.device)
    detector = GradNormDetector(net, params="all").fit(X[:2])
    score = partial(detector.score_samples, X)
    by_vmap = partial(yardsticks.vmap_gradnorm, net, X)
    yield Pair("vmap(grad) by 32", score, by_vmap, target=0.2)
    yield Pair("forward + backward", score, partial(yardsticks.forward_backward, net, X), target=3)
    yield Figure("peak", partial(peak_mib, score, setting.device), target=300, unit="MiB")
    yield Figure("error", lambda: relative_error(score(), by_vmap()), target=1e-5)
    net.double()
    X = X[:4].double()
    detector.fit(X[:2])
    yield Figure(
        "error in float64",
        lambda: relative_error(detector.score_samples(X), yardsticks.vmap_gradnorm(net, X)),
        target=1e-12,
    )


def nac(setting):
    """NAC over four layers of a ResNet-18, over one forward and one backward to the first."""
    net = seeded(ResNet18, N_CLASSES).to(setting.device)
    X, _ = images(setting.pick(128, 64), 1, setting.device)
    train, y = images(setting.pick(512, 128), 2, setting.device)
    detector = NACDetector(net, LAYERS).fit(train[:128], y[:128])
    score = partial(detector.score_samples, X)
    once = yardsticks.resnet_gradient_at_layer1
    yield Pair("score / forward + backward", score, partial(once, net, X), target=1.05)
    yield Pair(
        "fit / forward + backward",
        partial(NACDetector(net, LAYERS).fit, train, y),
        partial(once, net, train),
        target=1.15,
    )
    a_layer = partial(yardsticks.backward_a_layer, net, X, LAYERS)
    yield Pair("score / one backward a layer", score, a_layer)


def gmm(setting):
    """Gaussians of 50 classes, 20 000 rows of 256 features."""
    n, D, K = setting.pick(20_000, 2_000), 256, 50
    device = setting.device
    make = partial(classes, n, D, K, device=device)
    (train, y), (X, _) = make(seed=1), make(seed=2)
    detector = GMMDetector().fit(train, y)
    score, fit = partial(detector.score_samples, X), partial(GMMDetector().fit, train, y)
    stacked = normal(D, K * D).to(device)
    gemm, labels = partial(torch.mm, X, stacked), torch.from_numpy(y).to(device)
    gemm64 = partial(torch.mm, X.double(), stacked.double())
    yield Pair("score float32 / GEMM", score, gemm, target=0.85)
    detector64 = GMMDetector().fit(train.double(), y)
    score64 = partial(detector64.score_samples, X.double())
    yield Pair("score float64 / GEMM float64", score64, gemm64, target=0.9)
    apart = GMMDetector().fit(*make(seed=1, distance=30))
    X_apart, _ = make(seed=2, distance=30)
    yield Pair("separated / GEMM", partial(apart.score_samples, X_apart), gemm, target=0.35)
    yield gaussians_of(setting.pick(1_000, 200), D, device)
    loops = partial(yardsticks.gaussians_fit, train, labels, K)
    yield Pair("fit / float64 loops, threshold", fit, loops, target=0.8)
    loops = partial(yardsticks.gaussians_by_class, train, labels, K)
    yield Pair("fit / float64 loops, no threshold", fit, loops)
    if device == "cpu":
        mixture = yardsticks.sklearn_mixture(loops(), np.float32)
        yield Pair("score / sklearn", score, partial(mixture.score_samples, X.numpy()))
    yield Figure("peak of score", partial(peak_mib, score, device), target=64, unit="MiB")
    yield Figure("peak of fit", partial(peak_mib, fit, device), unit="MiB")
    yield Figure("float32 error, ill-conditioned", partial(ill_conditioned, device), target=1e-4)


def gaussians_of(K, D, device):
    """Compare the scores of many Gaussians with the product, by blocks that fit into memory."""
    detector = GMMDetector().fit(*classes(5 * K, D, K, device=device))
    X, _ = classes(2_000, D, K, seed=2, device=device)
    stacked = normal(D, K * D).to(device)

    def gemm():
        for block in X.split(500):
            torch.mm(block, stacked)

    score = partial(detector.score_samples, X)
    return Pair(f"{K} classes / GEMM", score, gemm, target=0.85)


def ill_conditioned(device):
    """Relative error in float32 at condition 1e8 and an offset of 1000 standard deviations."""
    n, D, K = 4_000, 64, 4
    X, y = classes(2 * n, D, K)
    rotation, _ = torch.linalg.qr(normal(D, D, dtype=torch.float64))
    X = (X.double() * torch.logspace(0, -4, D, dtype=torch.float64)) @ rotation + 1000
    X = X.float().to(device)
    scores = [
        GMMDetector(reg_covar=0).fit(rows[::2], y[::2]).score_samples(rows[1::2])
        for rows in (X, X.double())
    ]
    return relative_error(*scores)


def nnguide(setting):
    """NNGuide on a bank of 50 000 x 512 and of 1 M x 512, over faiss."""
    device, head = setting.device, linear_head(512, setting.device)
    flat = faiss is not None and device == "cpu"
    name = "faiss flat" if flat else "GEMM + topk"
    if not flat:
        print("  faiss is not installed, or knows no GPU: a GEMM and topk stand in for it.")

    @torch.no_grad()
    def prepare(n_bank, n_queries):
        """Make rows for a bank and to score, and a function that finds the latter's neighbours."""
        train, y = classes(n_bank, 512, device=device)
        X, _ = classes(n_queries, 512, seed=2, device=device)
        queries, _ = yardsticks.nnguide_rows(X.relu_(), head)
        _, bank = yardsticks.nnguide_rows(train.relu_(), head)
        if not flat:
            return train, y, X, lambda k: (queries @ bank.T).topk(k)
        index = faiss.IndexFlatIP(512)
        index.add(bank.numpy())
        return train, y, X, partial(index.search, queries.numpy())

    train, y, X, nearest = prepare(setting.pick(50_000, 20_000), setting.pick(2_000, 1_000))
    for k, target in [(1, 1.0), (100, 1.25), (10, 1.0)]:
        score = partial(BankOnly(head, k=k).fit(train, y).score_samples, X)
        yield Pair(f"k={k} / {name}", score, partial(nearest, k), target=target)
    if device == "cpu":
        # Cosine distance: by inner products, as here, which scikit-learn does not have.
        neighbors = NearestNeighbors(n_neighbors=10, algorithm="brute", metric="cosine").fit(train)
        yield Pair("k=10 / sklearn", score, partial(neighbors.kneighbors, X))
    if flat and "index" in inspect.signature(NNGuideDetector).parameters:
        approximate = BankOnly(head, index="IVF256,Flat").fit(train, y)
        score = partial(approximate.score_samples, X)
        yield Pair("IVF256,Flat, k=10 / faiss flat", score, partial(nearest, 10))
        del approximate
    # The smaller bank goes before the larger one comes.
    del score, nearest
    n_bank = setting.pick(1_000_000, 100_000)
    train, y, X, nearest = prepare(n_bank, setting.pick(500, 250))
    score = partial(BankOnly(head).fit(train, y).score_samples, X)
    del train
    yield Pair(f"bank {n_bank:,} / {name}", score, partial(nearest, 10), target=1.05)
    yield Figure("peak beyond the bank", partial(peak_mib, score, device), target=100, unit="MiB")


def ash(setting):
    """Shaping maps of shape (256, 512, 7, 7), over topk, zeros and scatter."""
    x = normal(256, 512, 7, 7).relu_().to(setting.device)
    for variant in "ps":
        for percentile, target in [(0.65, 0.25), (0.9, 0.4)]:
            yield Pair(
                f"{variant.upper()} at {percentile} / topk, scatter",
                partial(Shaping(variant, percentile), x),
                partial(yardsticks.ash_by_scatter, x, percentile, variant),
                target=target if variant == "p" else None,
            )
    yield Figure("rows with wrong ties", partial(wrong_ties, setting.device), target=0)


def wrong_ties(device):
    """Count rows in which others than the k first in a stable order are kept."""
    x = (normal(64, 32, 7, 7) * 3).round().relu_().add_(1)
    kept = Shaping("p", 0.65)(x.to(device)).cpu().flatten(1) > 0
    k = x[0].numel() - int(np.round(x[0].numel() * 0.65))
    order = (-x.flatten(1)).argsort(dim=1, stable=True)[:, :k]
    return int((kept != torch.zeros_like(kept).scatter_(1, order, True)).any(1).sum())


def memory_mapped(n, n_features):
    """Fill an array in a file without a name, block by block; return it and labels."""
    with tempfile.TemporaryFile() as file:
        X = np.memmap(file, np.float32, "w+", shape=(n, n_features))
    for i, start in enumerate(range(0, n, 10_000)):
        block = X[start : start + 10_000]
        block[:] = classes(len(block), n_features, seed=i)[0].relu_()
    return X


def growth(setting):
    """Growth of time and memory with the rows of a memory-mapped X, 10⁴ to 10⁶ times 128."""
    n = setting.pick(1_000_000, 200_000)
    sizes = [10_000, 100_000, n]
    X = memory_mapped(n, 128)
    train, y = classes(2_000, 128, 2)
    train = train.relu_().numpy()
    head = linear_head(128, setting.device)
    for name, detector in [
        ("GMM", GMMDetector(device=setting.device)),
        ("ASH", ASHDetector(head)),
        ("GradNorm head", GradNormDetector(head)),
    ]:
        detector.fit(train, y)
        yield Figure(
            f"{name}: exponent of time less 1",
            partial(exponents, detector, X, sizes, setting),
            target=0.05,
        )

        def more_memory(detector=detector):
            """Compare all rows with half of them, their scores of 4 bytes taken off."""
            half, whole = (
                peak_mib(partial(detector.score_samples, X[:rows]), setting.device)
                for rows in (n // 2, n)
            )
            return whole - half - 4 * (n - n // 2) / 2**20

        yield Figure(f"{name}: memory of twice the rows", more_memory, target=2, unit="MiB")


def exponents(detector, X, sizes, setting):
    """Fit n^a to the time of scoring n rows, in rounds over the sizes."""
    detector.score_samples(X)
    rounds = []
    for _ in range(setting.pairs):
        times = [seconds(partial(detector.score_samples, X[:n]), setting.device) for n in sizes]
        rounds.append(float(np.polyfit(np.log(sizes), np.log(times), 1)[0]) - 1)
    return rounds


def search(setting):
    """GridSearchCV over 10 percentiles of ASH, over scoring the same rows 50 times."""
    n, D = setting.pick(20_000, 5_000), 512
    X, y = classes(n, D)
    order = np.random.default_rng(0).permutation(n)
    X, y = X.relu_().numpy()[order], y[order]
    # A tenth of the rows is out-of-distribution.
    y[::10] = -1
    head, percentiles = linear_head(D, setting.device), np.linspace(0.1, 0.95, 10)
    detectors = [ASHDetector(head, percentile=p).fit(X, y) for p in percentiles]
    folds = [(X[train], X[test]) for train, test in KFold(5).split(X)]

    def score_all():
        for detector in detectors:
            for train, test in folds:
                detector.score_samples(train)
                detector.score_samples(test)

    grid = GridSearchCV(ASHDetector(head), {"percentile": percentiles}, cv=5)
    yield Pair("GridSearchCV / scoring", partial(grid.fit, X, y), score_all, target=1.3)


def metrics(setting):
    """AUROC and FPR95 of 10⁷ scores, over scikit-learn's AUROC alone."""
    rng = np.random.default_rng(0)
    y = rng.choice([0, 1, 2, -1], size=setting.pick(10**7, 10**6))
    scores = rng.normal(size=len(y)) + (y >= 0)
    inside, ties = y >= 0, scores.round(2)

    def both():
        return auroc_score(y, scores), fpr_at_tpr_score(y, scores)

    yield Pair("both / roc_auc_score", both, partial(roc_auc_score, inside, scores), target=0.1)
    yield Figure(
        "error with ties",
        lambda: abs(auroc_score(y, ties) - roc_auc_score(inside, ties)),
        target=1e-12,
    )


def imports(setting):
    """Import of skood, over that of what it is made of."""

    def run(code):
        return partial(
            subprocess.run, [sys.executable, "-c", code], cwd=ROOT, check=True, env=os.environ
        )

    parts = "import torch, sklearn.base, sklearn.linear_model, sklearn.cluster, sklearn.metrics"
    yield Pair("import skood / its parts", run("import skood"), run(parts), target=1.1)


CASES = {
    case.__name__: case
    for case in (
        *(heads, gradnorm, nac, gmm, nnguide, ash, growth, search, metrics, imports),
        *(methods, imagenet, roofline),
    )
}
CPU_ONLY, GPU_ONLY = {"metrics", "imports"}, {"roofline"}
