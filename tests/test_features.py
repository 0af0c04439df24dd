"""The feature extractor, and how often `fit` runs the network."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skood import (
    ASHDetector,
    BATSDetector,
    FeatureExtractor,
    GAIADetector,
    GMMDetector,
    KNNDetector,
    NNGuideDetector,
    RankFeatDetector,
    ReActDetector,
    VRADetector,
)
from skood.data.store import TensorStore, join
from skood.testing.common import moves_inputs
from tests import references as ref
from tests.networks import SmallCNN, ViT, seeded
from tests.registry import IN_NETWORKS, each


class Counting(SmallCNN):
    """A network that counts the rows and batches it sees, over all of its copies."""

    seen = {"rows": 0, "batches": 0}

    def __init__(self):
        super().__init__()
        # A module of its own, so that the network can be cut.
        self.count = Count(self.seen)

    def forward(self, x):
        """Map (n, 1, 8, 8) to logits."""
        return super().forward(self.count(x))


class Count(nn.Module):
    """Note what passes through."""

    def __init__(self, seen):
        super().__init__()
        self.note = lambda x: seen.update(rows=seen["rows"] + len(x), batches=seen["batches"] + 1)

    def forward(self, x):
        """Return what comes."""
        self.note(x)
        return x


@pytest.fixture
def counting():
    """Return a counting network, and a function that reads and resets its counts."""
    net = seeded(Counting)

    def read():
        counts = dict(net.seen)
        net.seen.update(rows=0, batches=0)
        return counts

    read()
    return net, read


@each(IN_NETWORKS)
def test_fit_runs_the_network_once(detector, counting, images):
    net, read = counting
    detector = clone(detector).set_params(model=net, batch_size=7)
    if detector.get_params().get("params") == "all":
        return
    detector.fit(*images)
    inside = getattr(detector, "layer", None) is not None
    # Of two rows it is looked at where the logits are made, and what the parts of a network give.
    learns_inside = inside and isinstance(detector, (BATSDetector, ReActDetector, VRADetector))
    # For exact zeros of gradients too.
    looks_for_zeros = isinstance(detector, GAIADetector) and detector.variant == "z"
    n_looks = 3 if learns_inside else 2 if looks_for_zeros else 1
    # Where the network itself scores, the first batch is scored twice for what rounding does.
    scores_itself = isinstance(detector, RankFeatDetector) or (
        inside and isinstance(detector, ASHDetector)
    )
    again = 2 if scores_itself else 0
    # A pass for the gradient, and one for what it moves; one for each transform.
    n_passes = 2 if moves_inputs(detector) else len(getattr(detector._body, "transforms", [None]))
    # Images of noise, of which the prototype is the mean.
    n_noise = 1000 if getattr(detector, "ood", None) == "noise" else 0
    found = read()
    assert found["rows"] == n_passes * 24 + 2 * n_looks + 7 * again + n_noise
    if not n_noise:
        assert found["batches"] == n_passes * 4 + n_looks + again
    detector.score_samples(images[0])
    assert read() == {"rows": n_passes * 24, "batches": n_passes * 4}


@each(IN_NETWORKS)
def test_features_beyond_working_memory_go_to_a_file(detector, images, monkeypatch):
    X, y = images
    detector = clone(detector).set_params(model=seeded(SmallCNN), batch_size=7)
    expected = clone(detector).fit(X, y)
    kept = []
    tensors = TensorStore.tensors.func

    def spy(self):
        kept.append(self._files is not None)
        return tensors(self)

    monkeypatch.setattr(TensorStore, "tensors", property(spy))
    # Of the store alone: blocks follow working_memory too, and round otherwise.
    monkeypatch.setattr("skood.data.store.get_config", lambda: {"working_memory": 1e-6})
    found = clone(detector).fit(X, y)
    assert all(kept)
    assert found.offset_ == pytest.approx(expected.offset_, rel=1e-6)
    np.testing.assert_array_equal(found.score_samples(X), expected.score_samples(X))


def test_the_identity_without_a_network(rng):
    X = rng.normal(size=(10, 4))
    extractor = FeatureExtractor().fit(X)
    found = extractor.transform(X)
    np.testing.assert_array_equal(found, X)
    assert not np.shares_memory(found, X)


def test_names_frames_and_pickles(images):
    X, _ = images
    extractor = FeatureExtractor(seeded(SmallCNN)).set_output(transform="pandas").fit(X)
    frame = extractor.transform(X)
    assert list(frame.columns) == [f"featureextractor{i}" for i in range(12)]
    twin = pickle.loads(pickle.dumps(extractor))
    np.testing.assert_array_equal(twin.transform(X), frame)


# What scikit-learn runs on its own transformers, and `parametrize_with_checks` leaves out.
CHECKS_OF_FRAMES = [
    estimator_checks.check_global_set_output_transform_polars,
    estimator_checks.check_set_output_transform,
    estimator_checks.check_set_output_transform_pandas,
    estimator_checks.check_set_output_transform_polars,
    estimator_checks.check_transformer_get_feature_names_out,
    estimator_checks.check_transformer_get_feature_names_out_pandas,
]


@pytest.mark.parametrize("check", CHECKS_OF_FRAMES)
def test_frames_as_scikit_learn_checks_them(check):
    check("FeatureExtractor", FeatureExtractor(LogisticRegression()))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_through_a_pipeline(library, images):
    """Each step knows the names of the one before; scores stay those without frames."""
    X, y = images
    steps = FeatureExtractor(seeded(SmallCNN)), StandardScaler(), KNNDetector(k=1)
    expected = make_pipeline(*map(clone, steps)).fit(X, y).score_samples(X)
    pipe = make_pipeline(*steps).set_output(transform=library).fit(X, y)
    names = [f"featureextractor{i}" for i in range(12)]
    assert list(pipe[-1].feature_names_in_) == list(pipe[:-1].get_feature_names_out()) == names
    assert type(pipe[:-1].transform(X)).__module__.startswith(library)
    np.testing.assert_allclose(pipe.score_samples(X), expected, 1e-6)
    loader = DataLoader(TensorDataset(torch.from_numpy(X)), 7)
    np.testing.assert_allclose(pipe.score_samples(loader), expected, 1e-6)
    blocks = pytest.importorskip("dask.array").from_array(X, 12)
    with pytest.raises(TypeError, match=r"none of dask.\n.*transform_output='default'"):
        pipe[0].transform(blocks)


def test_the_first_token_is_of_tokens(images):
    X, _ = images
    with pytest.raises(ValueError, match="needs tokens"):
        FeatureExtractor(seeded(SmallCNN), "conv1", pool="token").fit(X)
    assert FeatureExtractor(seeded(ViT), "encoder", pool="token").fit_transform(X).shape == (24, 12)


def test_an_unfitted_network_is_trained_on_in_distribution_rows_alone(images):
    from skorch import NeuralNetClassifier

    X, y = images
    y = np.where(y == 3, -1, y)
    net = NeuralNetClassifier(
        SmallCNN, module__classes=3, criterion=nn.CrossEntropyLoss, train_split=None, verbose=0
    )
    seen = []
    extractor = FeatureExtractor(net.set_params(max_epochs=1, callbacks=[("see", Seen(seen))]))
    assert extractor.fit(X, y).transform(X).shape == (24, 12)
    assert seen == [18]


def Seen(seen):  # noqa: N802
    """Return a skorch callback that notes how many rows it is trained on."""
    from skorch.callbacks import Callback

    class Note(Callback):
        def on_train_begin(self, net, X, y, **kwargs):
            seen.append(len(X))

    return Note()


def test_memory_remembers_by_content(counting, images, tmp_path):
    net, read = counting
    X, _ = images
    extractor = FeatureExtractor(net, memory=str(tmp_path)).fit(X)
    read()
    first = extractor.transform(X)
    assert read()["rows"] == 24
    again = FeatureExtractor(net, memory=joblib.Memory(str(tmp_path), verbose=0)).fit(X.copy())
    read()
    np.testing.assert_array_equal(again.transform(X.copy()), first)
    assert read()["rows"] == 0
    again.transform(X + 1)
    assert read()["rows"] == 24
    with torch.no_grad():
        net.conv1.weight.add_(1)
    with pytest.warns(UserWarning, match="trained further"):
        changed = again.transform(X)
    assert read()["rows"] == 24 and not np.allclose(changed, first)
    FeatureExtractor(net, "conv1", memory=str(tmp_path)).fit(X).transform(X)
    assert read()["rows"] >= 24


def test_memory_tells_networks_with_the_same_weights_apart(rng, tmp_path):
    X = rng.normal(size=(10, 4)).astype(np.float32)
    first, last = nn.Linear(4, 8), nn.Linear(8, 3)
    outputs = []
    for middle in (nn.ReLU(), nn.Tanh(), nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)):
        extractor = FeatureExtractor(nn.Sequential(first, middle, last), memory=str(tmp_path))
        outputs.append(extractor.fit(X).transform(X))
    assert len({output.tobytes() for output in outputs}) == 4
    half = FeatureExtractor(nn.Sequential(first, nn.ReLU(), last).bfloat16(), memory=str(tmp_path))
    assert half.fit(X).transform(torch.as_tensor(X).bfloat16()).shape == (10, 8)


class Scaled(nn.Module):
    """A network with a setting that is in no state_dict."""

    def __init__(self, setting):
        super().__init__()
        self.setting = setting
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        """Map (n, 4) to logits."""
        setting = self.setting
        if callable(setting):
            return self.fc(setting(x))
        return self.fc(x * (setting[0] if isinstance(setting, list) else setting))


def test_memory_knows_settings_and_gives_writable_features(rng, tmp_path):
    X = rng.normal(size=(10, 4)).astype(np.float32)
    settings = [torch.tensor(2.0), torch.tensor(3.0), [4.0], [5.0], torch.relu, torch.tanh]
    settings += [lambda x: x + 1, lambda x: x + 2]
    memory = joblib.Memory(str(tmp_path), mmap_mode="r", verbose=0)
    outputs = []
    for setting in settings:
        extractor = FeatureExtractor(Scaled(setting), memory=memory).fit(X)
        outputs.append(extractor.transform(X))
        again = extractor.transform(X)
        np.testing.assert_array_equal(again, outputs[-1])
        again[0, 0] = 5
    assert len({output.tobytes() for output in outputs}) == len(settings)


@pytest.mark.parametrize("n_rows", [9, None])
def test_features_keep_no_tokens_alive(n_rows):
    tokens = torch.arange(9 * 200 * 4.0).view(9, 200, 4)
    joined = join((part[:, 0] for part in tokens.split(2)), n_rows)
    assert torch.equal(joined, tokens[:, 0])
    assert joined.untyped_storage().nbytes() <= 2 * joined.nbytes


def test_a_search_passes_each_row_six_times(counting, images, tmp_path):
    net, read = counting
    X, y = images
    pipeline = Pipeline(
        [
            ("features", FeatureExtractor(net, memory=str(tmp_path))),
            ("ood", NNGuideDetector(net.fc)),
        ]
    )
    y = np.where(np.arange(24) % 2, -1, y)
    cv = StratifiedKFold(5, shuffle=True, random_state=0)
    search = GridSearchCV(pipeline, {"ood__k": list(range(1, 11))}, cv=cv)
    search.fit(X, y)
    # Two rows tell where the logits are made, and two the size of the features.
    checks = (2 + 2) * (10 * 5 + 1)
    assert read()["rows"] <= 6 * 24 + checks


def test_gmm_behind_an_extractor_of_a_layer_equals_gmm_with_that_layer(images):
    X, y = images
    net = seeded(SmallCNN)
    direct = GMMDetector(net, "conv1", reg_covar=0.1).fit(X, y)
    pipeline = make_pipeline(FeatureExtractor(net, "conv1"), GMMDetector(reg_covar=0.1)).fit(X, y)
    np.testing.assert_allclose(pipeline.score_samples(X), direct.score_samples(X), rtol=1e-5)


def test_bad_parameters(images):
    with pytest.raises(ValueError, match="'pool' parameter"):
        FeatureExtractor(pool="sum").fit(images[0])
    with pytest.raises(ValueError, match="has no layer 'conv3'"):
        FeatureExtractor(seeded(SmallCNN), "conv3").fit(images[0])


@pytest.mark.parametrize("layer", [None, "conv1"])
@pytest.mark.parametrize("pool", ["avg", "max", None])
def test_features_are_those_of_the_network(layer, pool, rng):
    net, X = seeded(SmallCNN).double(), rng.normal(size=(12, 1, 8, 8))
    found = FeatureExtractor(net, layer, pool=pool).fit(X).transform(X)
    expected = ref.features(net, X, layer)
    if layer and pool:
        expected = expected.mean((2, 3)) if pool == "avg" else expected.max((2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_features_of_tokens(rng):
    net, X = seeded(ViT).double(), rng.normal(size=(12, 1, 8, 8))
    tokens = ref.features(net, X, "encoder.layers", "head")
    for pool, expected in {"avg": tokens.mean(1), "token": tokens[:, 0], None: tokens}.items():
        extractor = FeatureExtractor(net, "encoder.layers", pool=pool).fit(X)
        np.testing.assert_allclose(extractor.transform(X), expected, rtol=1e-10)
