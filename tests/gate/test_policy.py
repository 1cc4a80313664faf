"""Policies: what they say, and that everything wrong with one is said at once."""

import json
from pathlib import Path

import pytest

from bmft.auditing import METRICS
from bmft.errors import PolicyError
from bmft.gate import load_policy, parse_policy
from bmft.gate.policy import BOUNDS, Check, attribute_name, schema

EXAMPLE = """
[gate]
alpha = 0.05
on_inconclusive = "fail"
min_positives = 30
cluster = "patient_id"

[[check]]
metric = "true_positive_rate"
sensitive = ["sex"]
max_difference = 0.10

[[check]]
metric = "roc_auc"
sensitive = ["sex", "age:40,60"]
intersect = true
min_group = 0.75

[[non_inferiority]]
metric = "roc_auc"
margin = 0.02
per_group = true

[[waiver]]
check = "roc_auc/sex*age"
group = "female*60+"
reason = "11 patients; collecting more, review 2027-03"
"""


def check(**values):
    """The TOML of one check."""
    values = {"metric": "roc_auc", "sensitive": ["sex"], **values}
    return "[[check]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def refusal(text):
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, name="p.toml")
    return str(caught.value)


def test_every_key_arrives():
    policy = parse_policy(EXAMPLE)
    assert (policy.alpha, policy.on_inconclusive, policy.min_positives) == (0.05, "fail", 30)
    assert policy.cluster == "patient_id"
    assert policy.checks == (
        Check("true_positive_rate/sex", "true_positive_rate", "sex", "max_difference", 0.1),
        Check("roc_auc/sex*age", "roc_auc", "sex*age", "min_group", 0.75),
    )
    assert policy.sensitive == ("sex", "sex*age:40,60")
    (other,) = policy.non_inferiority
    assert (other.id, other.margin, other.attributes) == ("roc_auc/baseline", 0.02, ("sex", "sex*age"))
    assert policy.waivers[0].group == "female*60+"


def test_defaults_are_the_schemas():
    policy = parse_policy(check(max_difference=0.1))
    for key, rule in schema()["properties"]["gate"]["properties"].items():
        if "default" in rule and key != "threshold":
            assert getattr(policy, key) == rule["default"], key
    # Without a threshold of its own a policy takes the audit's.
    assert policy.threshold is None


def test_an_attribute_each_and_a_bound_each_is_a_check_each():
    policy = parse_policy(check(sensitive=["sex", "age:60"], max_difference=0.1, min_group=0.7))
    ids = [f"roc_auc/{name}:{bound}" for name in ("sex", "age") for bound in ("max_difference", "min_group")]
    assert [one.id for one in policy.checks] == ids


def test_a_file_and_its_text_are_the_same_policy(tmp_path):
    path = tmp_path / "fairness.toml"
    path.write_text(EXAMPLE)
    assert load_policy(path) == parse_policy(EXAMPLE)
    assert load_policy(path).hash == parse_policy(EXAMPLE).hash != parse_policy(EXAMPLE + "# more").hash


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (check(metric="roc_auk", max_difference=0.1), ["check 1 metric", "mean 'roc_auc'"]),
        (check(max_diference=0.1), ["unknown key 'max_diference'", "'max_difference'", "at least one of"]),
        ("[gat]\nalpha = 0.1\n" + check(max_difference=0.1), ["unknown key 'gat'", "mean 'gate'"]),
        ("[gate]\non_inconclusive = 'stop'\n" + check(max_difference=0.1), ["'stop'", "'fail', 'warn'"]),
        ("[gate]\nalpha = 0.5\n" + check(max_difference=0.1), ["gate alpha", "0.5 is not below 0.5"]),
        ("[gate]\nalpha = true\n" + check(max_difference=0.1), ["gate alpha", "True is no number"]),
        ("[gate]\nmin_positives = 0\n" + check(max_difference=0.1), ["min_positives", "not at least 1"]),
        (check(max_difference=0), ["max_difference", "not above 0"]),
        (check(max_difference="0.1"), ["max_difference", "'0.1' is no number"]),
        (check(max_difference=0.1, sensitive=[]), ["check 1 sensitive", "is empty"]),
        (check(max_difference=0.1, sensitive="sex"), ["check 1 sensitive", "'sex' is no array"]),
        (check(metric="false_positive_rate", min_group=0.1), ["min_group is a floor", "write max_group"]),
        (check(max_group=0.1), ["max_group is a ceiling", "write min_group"]),
        (check(metric="equalized_odds", min_ratio=0.8), ["equalized_odds takes max_difference only"]),
        (check(max_difference=0.1, intersect=True), ["intersect needs at least two"]),
        (check(max_difference=0.1) * 2, ["roc_auc/sex has max_difference twice"]),
        (
            check(max_difference=0.1, sensitive=["age:40"]) + check(min_group=0.5, sensitive=["age:60"]),
            ["cut in two ways: 'age:40' and 'age:60'"],
        ),
        ("[gate]\nalpha = 0.05\n", ["at least one of check, non_inferiority"]),
        ("[[non_inferiority]]\nmetric = 'f1'\nmargin = 0.1\nper_group = true\n", ["name some in sensitive"]),
        ("[[non_inferiority]]\nmetric = 'selection_rate'\nmargin = 0.1\n", ["unknown 'selection_rate'"]),
        (check(max_difference=0.1) + "[[waiver]]\ncheck = 'x'\n", ["waiver 1: 'reason' is missing"]),
        ("check = 3", ["check: 3 is no array"]),
        ("= nonsense", ["is no TOML file"]),
        ("a = " + "[" * 5000, ["is no TOML file"]),
    ],
)
def test_a_refusal_says_where_and_what_instead(text, words):
    message = refusal(text)
    assert message.startswith("p.toml")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_all_problems_are_in_one_message():
    message = refusal(check(metric="roc_au", max_diference=0.1) + "[gate]\nalpa = 0.1\nseed = -1\n")
    assert "5 problems" in message
    for word in ("'roc_auc'", "'max_difference'", "at least one of", "'alpha'", "seed: -1"):
        assert word in message


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(PolicyError, match=r"none\.toml cannot be read"):
        load_policy(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9\n")
    with pytest.raises(PolicyError, match=r"latin\.toml cannot be read"):
        load_policy(tmp_path / "latin.toml")


def test_the_schema_knows_the_bounds_and_metrics_the_code_knows():
    properties = schema()["properties"]["check"]["items"]["properties"]
    assert set(BOUNDS) < set(properties)
    assert set(properties["metric"]["enum"]) == {*METRICS, "predicted_positive_ratio", "equalized_odds"}
    own = schema()["properties"]["non_inferiority"]["items"]["properties"]["metric"]["enum"]
    assert set(own) == {name for name, metric in METRICS.items() if metric.better}


def test_the_schema_uses_only_what_the_reader_reads():
    known = {
        "type",
        "enum",
        "properties",
        "items",
        "required",
        "anyOf",
        "additionalProperties",
        "minItems",
        "minLength",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "description",
        "default",
        "title",
        "$schema",
    }

    def walk(rule):
        assert set(rule) <= known, set(rule) - known
        if rule.get("type") == "object":
            assert rule["additionalProperties"] is False
        for inner in [*rule.get("properties", {}).values(), *([rule["items"]] if "items" in rule else [])]:
            walk(inner)

    walk(schema())


@pytest.mark.parametrize(("spec", "name"), [("sex", "sex"), ("age:40,60", "age"), ("age:60 * sex", "age*sex")])
def test_an_attribute_is_named_without_its_cuts(spec, name):
    assert attribute_name(spec) == name


def test_the_schema_ships_beside_the_code():
    import bmft

    assert (Path(bmft.__file__).parent / "gate" / "policy.schema.json").is_file()


def test_a_policy_with_a_byte_order_mark_is_read_as_one_without(tmp_path):
    from bmft.gate import load_policy

    text = '[[check]]\nmetric = "roc_auc"\nsensitive = ["sex"]\nmax_difference = 0.1\n'
    for name, mark in (("plain.toml", b""), ("marked.toml", b"\xef\xbb\xbf")):
        (tmp_path / name).write_bytes(mark + text.encode())
    assert load_policy(tmp_path / "marked.toml").checks == load_policy(tmp_path / "plain.toml").checks
