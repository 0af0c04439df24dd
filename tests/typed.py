"""What type checkers know of the constructors: checked by mypy, a part of `.ci/run`."""

from typing import Any, assert_type

from skood import (
    FeatureExtractor,
    GMMDetector,
    MahalanobisDetector,
    MSPDetector,
    NNGuideDetector,
    ReActDetector,
    ViMDetector,
)


def constructors() -> None:
    """Not run: most of these would fail."""
    assert_type(GMMDetector(None, "fc", reg_covar=0.1).reg_covar, float | str)
    assert_type(NNGuideDetector(k=5).fit([[0.0], [1.0]]).bank_size, int | float | None)
    # A method's own parameters and the common ones are in one signature, as reveal_type shows.
    detector = ViMDetector(None, "fc", n_components=0.9, center="mean", alpha="train", batch_size=8)
    assert_type(detector, ViMDetector)
    assert_type(detector.n_components, int | float | None)
    assert_type(detector.center, str)
    assert_type(detector.alpha, float | str)
    assert_type(detector.layer, str | None)
    assert_type(detector.false_alarm_rate, float)
    assert_type(detector.fit([[0.0], [1.0]]), ViMDetector)
    assert_type(ReActDetector(lower=0.1).threshold, float | None)
    assert_type(MSPDetector(temperature="fit").temperature, float | str)
    assert_type(MahalanobisDetector(normalize=0.5).normalize, bool | float)
    assert_type(detector.get_params(), dict[str, Any])
    # Errors of types here are ones that users are told of.
    ViMDetector(components=3)  # type: ignore[call-arg]
    FeatureExtractor(pooling="max")  # type: ignore[call-arg]
    ViMDetector(None, "fc", 0.5)  # type: ignore[call-arg, arg-type]
    GMMDetector(reg_covar=[1.0])  # type: ignore[arg-type]
