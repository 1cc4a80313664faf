"""Where the gap sits: what a report's picture of the network says of its blocks."""

import pytest

from bmft import fairness
from bmft.masks import weight_importance
from bmft.methods import debias
from bmft.models import blocks, tensors_of
from tests.training.test_resume import network, patients

pytestmark = pytest.mark.usefixtures("few_steps")

QUICK = {"strengths": [4.0], "epochs": [1, 0], "batch_size": 16}
OPTIONS = {"device": "cpu", "intervals": False, "keep": "last"}


@pytest.fixture(scope="module")
def sets():
    return patients(200).split(0.5, 0.5, seed=0)


def test_a_block_carries_its_share_of_the_whole_set_s_squared_gradient(sets):
    model = network()
    outcome = debias(model, *sets, config=QUICK, **OPTIONS)
    scores = weight_importance(model, fairness.equalized_odds_gap, sets[0])
    sums = {block: sum(float(scores[name].sum()) for name in names) for block, names in blocks(model).items()}
    found = outcome.report.mask["by_block"]
    assert list(found) == list(sums)
    expected = {block: value / sum(sums.values()) for block, value in sums.items()}
    assert {block: part["importance"] for block, part in found.items()} == pytest.approx(expected, rel=1e-3)


def test_what_moved_is_counted_in_the_weights_themselves(sets):
    model = network()
    outcome = debias(model, *sets, config=QUICK, **OPTIONS)
    before, after = tensors_of(model), tensors_of(outcome.model)
    for block, names in blocks(model).items():
        part = outcome.report.mask["by_block"][block]
        assert part["moved"] == sum(int((before[name] != after[name]).sum()) for name in names)
        assert part["selected"] == sum(int(outcome.mask.tensors[name].sum()) for name in names)
        assert part["total"] == sum(before[name].numel() for name in names)
    assert any(part["moved"] for part in outcome.report.mask["by_block"].values())


def test_a_block_that_was_not_scored_has_no_share(sets):
    frozen = next(iter(blocks(network())))
    names = blocks(network())[frozen]
    found = debias(network(), *sets, config=QUICK | {"freeze": list(names)}, **OPTIONS).report.mask["by_block"]
    assert found[frozen] == {"importance": None, "selected": 0, "moved": 0, "total": found[frozen]["total"]}
    assert sum(part["importance"] or 0 for part in found.values()) == pytest.approx(1)


@pytest.mark.parametrize("method", ["random_mask", "rwreg"])
def test_where_nothing_was_scored_no_block_has_a_share(sets, method):
    config = {"epochs": [1, 0]} if method == "rwreg" else QUICK
    found = debias(network(), *sets, method=method, config=config, **OPTIONS).report.mask["by_block"]
    assert {part["importance"] for part in found.values()} == {None}
