"""`skood.testing`: wrong detectors fail, and are told what is wrong."""

import subprocess
import sys
from unittest import SkipTest

import numpy as np
import pytest
import torch
from sklearn.exceptions import SkipTestWarning

from skood import GMMDetector
from skood.testing import check_detector, detector_checks
from skood.testing.running import KINDS, name_of

pytestmark = pytest.mark.filterwarnings("ignore")


class Inverted(GMMDetector):
    def _finish_scores(self, scores, dtype):
        return -super()._finish_scores(scores, dtype)


class GivesNaN(GMMDetector):
    def score_samples(self, X):
        scores = super().score_samples(X)
        return np.where(np.abs(np.asarray(X)).max() > 1e20, np.nan, scores).astype(scores.dtype)


class WritesToX(GMMDetector):
    def score_samples(self, X):
        scores = super().score_samples(X)
        if isinstance(X, torch.Tensor):
            X.zero_()
        return scores


class LearnsFromOOD(GMMDetector):
    def fit(self, X, y=None):
        return super().fit(
            X, None if y is None else np.unique(np.asarray(y), return_inverse=True)[1]
        )


class DropsY(GMMDetector):
    def fit_predict(self, X, y=None):
        return self.fit(X).predict(X)


class LooksAtTheBatch(GMMDetector):
    def score_samples(self, X):
        scores = super().score_samples(X)
        return scores - scores.mean()


class SwitchesMode(GMMDetector):
    def fit(self, X, y=None):
        if isinstance(self.model, torch.nn.Module):
            self.model.eval()
        return super().fit(X, y)


class LeavesHooks(GMMDetector):
    def fit(self, X, y=None):
        if isinstance(self.model, torch.nn.Module):
            self.model.register_forward_hook(lambda *_: None)
        return super().fit(X, y)


class TrainsTheNetwork(GMMDetector):
    def score_samples(self, X):
        if isinstance(self.model, torch.nn.Module):
            with torch.no_grad():
                self.model.fc.bias.add_(1)
        return super().score_samples(X)


WRONG = [
    (Inverted, "check_ood_rows_score_lower", "Are they inverted"),
    (GivesNaN, "check_scores_are_finite", "gives NaN or infinity"),
    (WritesToX, "check_X_and_y_are_not_modified", "tensor X was written to"),
    (LearnsFromOOD, "check_ood_rows_are_left_out_and_counted", "rows whose label is negative"),
    (DropsY, "check_fit_predict_uses_y", "fit_predict drops y"),
    (LooksAtTheBatch, "check_rows_are_scored_each_on_its_own", "depends on the rows beside"),
    (SwitchesMode, "check_network_is_untouched", "network was changed: its training flags"),
    (LeavesHooks, "check_network_is_untouched", "network was changed: its hooks"),
    (TrainsTheNetwork, "check_network_is_untouched", "network was changed: its weights"),
]


@pytest.mark.parametrize(("wrong", "name", "message"), WRONG)
def test_a_wrong_detector_is_told_what_is_wrong(wrong, name, message):
    checks = [check for _, check in detector_checks(wrong()) if name_of(check).startswith(name)]
    assert checks
    with pytest.raises(AssertionError, match=message):
        for check in checks:
            check(wrong())


def test_a_failure_names_the_check_and_may_be_expected():
    wrong = SwitchesMode()
    with pytest.raises(AssertionError, match="training flags") as failure:
        check_detector(wrong, kinds=["network"])
    assert failure.value.__notes__ == ["check_network_is_untouched fails for SwitchesMode()."]
    expected = {
        "check_network_is_untouched": "it switches the network to eval mode",
        "check_network_is_untouched_when_fit_fails": "the same",
        "check_network_with_habit": "the same",
    }
    results = dict(check_detector(wrong, kinds=["network"], expected_failed_checks=expected))
    assert results["check_network_is_untouched"] == "xfail"
    assert results["check_threads_share_a_detector"] == "passed"


def test_a_class_is_refused():
    with pytest.raises(TypeError, match="Pass an instance, GMMDetector()"):
        check_detector(GMMDetector)


def test_names_of_checks_are_distinct():
    names = [name_of(check) for _, check in detector_checks(GMMDetector(), kinds=KINDS)]
    assert len(names) == len(set(names)) > 120


def test_pytest_and_hypothesis_are_not_needed():
    """A third party's detector is checked without them."""
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pytest", "hypothesis", "pandas", "polars"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from skood import ASHDetector
from skood.testing import check_detector
print(*sorted({status for _, status in check_detector(ASHDetector())}))
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert run.stdout.split() == ["passed", "skipped"], run.stderr


def test_what_is_skipped_is_told():
    with pytest.warns(SkipTestWarning, match="is skipped"):
        check_detector(GMMDetector(), kinds=["features"])


def test_a_cuda_build_of_torch_without_a_gpu_skips_the_checks_on_cuda(monkeypatch):
    """scikit-learn's array API checks ask only how torch was built, and then fail."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checks = [check for _, check in detector_checks(GMMDetector(), kinds=["features"])]
    on_gpu = [check for check in checks if "cuda" in name_of(check)]
    assert len(on_gpu) >= 4
    for check in on_gpu:
        with pytest.raises(SkipTest):
            check(GMMDetector())
