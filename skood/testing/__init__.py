"""The checks that every detector of skood passes, for detectors written elsewhere."""

from skood.testing.running import check_detector, detector_checks, parametrize_with_detector_checks

__all__ = [
    "check_detector",
    "detector_checks",
    "parametrize_with_detector_checks",
]
