"""Which tests are run when: `make test` leaves out those that `make test-ci` and `make test-long` add."""

from typing import Any

import pytest


def in_ci(*cases: Any) -> list[Any]:
    """Cases that only `make test-ci` runs: what `make test` runs goes the same way through the code."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.ci) for case in cases]
