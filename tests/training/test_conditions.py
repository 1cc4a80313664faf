"""What every run has in common, as one value."""

import pytest

from bmft.errors import ConfigError
from bmft.training import Conditions, Limits


def test_a_limit_is_set_by_its_own_name_like_any_condition():
    assert Conditions(seed=4).but(max_auc_drop=0.5, device="cpu") == Conditions(
        limits=Limits(max_auc_drop=0.5), seed=4, device="cpu"
    )


def test_a_condition_that_is_not_known_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="max_auc_drop"):
        Conditions().but(max_auc_dro=0.5)


@pytest.mark.parametrize("wrong", [{"keep": "first"}, {"max_group_auc_drop": 1.5}])
def test_a_value_that_is_not_possible_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Conditions().but(**wrong)
