"""What type checkers know of the constructors: checked by mypy, a part of `.ci/run`."""

from typing import assert_type

from skood import GMMDetector, NNGuideDetector

assert_type(GMMDetector(None, "fc", reg_covar=0.1).reg_covar, float | str)
assert_type(NNGuideDetector(k=5).fit([[0.0], [1.0]]).bank_size, int | float | None)
# An error of types here is one that users are told of.
GMMDetector(reg_covar=[1.0])  # type: ignore[arg-type]
