"""Checks in front of a network."""

import copy
import pickle
import threading

import numpy as np
import torch
from sklearn.pipeline import make_pipeline

from skood.estimators.features import FeatureExtractor
from skood.learning.learning import LearningScorer
from skood.testing.common import (
    Recorder,
    assert_untouched,
    depends_on_keys,
    expect,
    moves_inputs,
    random_images,
    snapshot,
    with_model,
)
from skood.testing.networks import OddCNN, SmallCNN, seeded


def check_network_is_untouched(detector):
    """Check that weights, buffers, flags, gradients and hooks stay as they are."""
    X, y = random_images()
    net = seeded(SmallCNN).train()
    net.conv1.weight.requires_grad_(False)
    net(torch.as_tensor(X)).sum().backward()
    before = snapshot(net)
    with_model(detector, net).fit(X, y).score_samples(X)
    assert_untouched(net, before)


def check_network_is_untouched_when_fit_fails(detector):
    """Check that they also stay when ``fit`` raises half way."""
    X, y = random_images()
    X[-1] = np.nan
    net = seeded(SmallCNN).train()
    before = snapshot(net)
    with expect.assertRaisesRegex(ValueError, "NaN"):
        with_model(detector, net).set_params(batch_size=8).fit(X, y)
    assert_untouched(net, before)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def check_state_of_the_network_does_not_matter(detector):
    """Check that train mode, frozen weights and inference mode change no score."""
    X, y = random_images()
    net = seeded(SmallCNN)
    expected = with_model(detector, net).fit(X, y).score_samples(X)
    frozen = copy.deepcopy(net).train().requires_grad_(False)
    with torch.inference_mode():
        found = with_model(detector, frozen).fit(X, y).score_samples(torch.as_tensor(X))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def check_autocast_does_not_matter(detector):
    """Check that autocast around the call changes no score."""
    X, y = random_images()
    detector = with_model(detector, seeded(SmallCNN)).fit(X, y)
    expected = detector.score_samples(X)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(detector.score_samples(X), expected)


def check_network_with_habit(detector, habit):
    """Check that a network with an odd habit scores as one without, and stays as it is."""
    X, y = (a.astype(float) for a in random_images())
    odd, plain = seeded(OddCNN, habit).double(), seeded(OddCNN, None).double()
    plain.load_state_dict(odd.state_dict(), strict=False)
    before = snapshot(odd)
    given = torch.as_tensor(X.copy())
    fitted = with_model(detector, odd).fit(given, y)
    found = fitted.score_samples(given)
    np.testing.assert_array_equal(given, X, err_msg="The tensor X was written to.")
    scale = 2 if habit == "writes to its input" else 1
    expected = with_model(detector, plain).fit(scale * X, y).score_samples(scale * X)
    if scale == 1 or not depends_on_keys(fitted) and not moves_inputs(fitted):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert_untouched(odd, before)
    twin = pickle.loads(pickle.dumps(with_model(detector, odd).fit(X, y)))
    np.testing.assert_array_equal(twin.score_samples(X), found)
    np.testing.assert_array_equal(X, random_images()[0], err_msg="X was written to.")


def check_pickle_with_a_network(detector):
    """Check that a pickle scores as the detector does, under inference mode too."""
    X, y = random_images()
    detector = with_model(detector, seeded(SmallCNN)).fit(X, y)
    expected = detector.score_samples(X)
    twin = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(twin.score_samples(X), expected)
    with torch.inference_mode():
        twin = copy.deepcopy(detector)
        np.testing.assert_array_equal(twin.score_samples(X), expected)


def check_threads_share_a_detector(detector):
    """Check that threads which score at once do not disturb each other."""
    X, y = random_images()
    detector = with_model(detector, seeded(SmallCNN)).fit(X, y)
    blocks = [X + i for i in range(4)]
    expected = [detector.score_samples(block) for block in blocks]
    wrong = []

    def work(i):
        for _ in range(5):
            if not np.array_equal(detector.score_samples(blocks[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, f"{len(wrong)} of 20 calls in 4 threads gave other scores."


def check_callbacks_are_told_of_every_batch(detector):
    """Check that callbacks hear of each batch, and of the end of a fit that fails."""
    X, y = random_images()
    recorder = Recorder()
    detector = with_model(detector, seeded(SmallCNN)).set_params(batch_size=7)
    detector.set_callbacks(recorder).fit(X, y)
    learns = isinstance(detector.scorer_, LearningScorer)
    tasks = ["network", "learn", "score"] if learns else ["score"]
    expect.assertEqual(sorted(recorder.begun), sorted(["fit", *tasks, *["batch"] * 4 * len(tasks)]))
    expect.assertEqual(sorted(recorder.ended), sorted(recorder.begun))
    with expect.assertRaisesRegex(ValueError, "NaN"):
        detector.fit(np.full_like(X, np.nan), y)
    assert recorder.set_up == recorder.torn_down == 2


def check_pipeline_with_features_of_a_network(detector):
    """Check that behind a `FeatureExtractor` a detector scores as in front of the network."""
    X, y = random_images()
    net = seeded(SmallCNN)
    head = net.fc if getattr(detector, "_needs_logits", True) else None
    pipeline = make_pipeline(FeatureExtractor(net), with_model(detector, head)).fit(X, y)
    fitted = with_model(detector, net).fit(X, y)
    found, expected = pipeline.score_samples(X), fitted.score_samples(X)
    if not depends_on_keys(fitted):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def check_logits_that_are_written_to_are_refused(detector):
    """Check that a network which changes its logits in place is refused."""
    with expect.assertRaisesRegex(ValueError, "does something after its last linear layer 'fc'"):
        with_model(detector, seeded(OddCNN, "writes to its logits")).fit(*random_images())
