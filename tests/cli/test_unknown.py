"""Codes of what is not known, at the command line: every command that reads tables leaves such rows out and says so."""

import json

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from tests.tiers import in_ci

POLICY = '[[check]]\nmetric = "false_positive_rate"\nsensitive = ["sex"]\nmax_difference = 0.9\n'
CODES = ["-1", "Unknown", "n/a", "?"]


@pytest.fixture
def marked(study):
    """The study with codes for what is not known in sex and age, and in the label."""
    table = pd.read_csv(study / "isic.csv", dtype=str, keep_default_na=False)
    table["sex"] = [CODES[i // 9 % 4] if i % 9 == 0 else value for i, value in enumerate(table["sex"])]
    table["age"] = ["-1" if i % 7 == 0 else value for i, value in enumerate(table["age"])]
    table["malignant"] = [
        "-1" if i % 10 == 0 else "" if i % 15 == 1 else value for i, value in enumerate(table["malignant"])
    ]
    return table


@pytest.fixture
def options(study, marked, tmp_path):
    """The command line's options for the marked table."""
    marked.to_csv(tmp_path / "marked.csv", index=False)
    common = ["--label", "malignant", "--sensitive", "sex", "--image-size", 32, "--images", study, "--seed", 1]
    return ["--data", tmp_path / "marked.csv", *common, "--split-column", "split", "--cluster", "patient_id"]


def kept_by_hand(table, split="test"):
    rows = table[(table["split"] == split) & table["malignant"].isin(["0", "1"])]
    return rows, rows[rows["sex"].isin(["female", "male"])]


def command_lines(options, folder):
    """Command -> its arguments and where its JSON has the audit of the original on test."""
    (folder / "p.toml").write_text(POLICY)
    quick = ["--methods", "threshold", "--seeds", 1, "--jobs", 1, "--report", "compare"]
    return {
        "audit": ([*options, "--json", "audit.json"], "audit.json"),
        "gate": ([*options, "--policy", "p.toml", "--json", "gate.json"], "gate.json"),
        "debias": ([*options, "--method", "threshold", "--report", "debias"], "debias/report.json"),
        "compare": ([*options, *quick], "compare/compare.json"),
        "search": ([*options, "--trials", 1, "--epochs", 1, "--report", "search"], "search/report.json"),
    }


@pytest.mark.parametrize("name", ["audit", "gate", "debias", *in_ci("compare", "search")])
def test_each_command_leaves_out_and_says_what_is_not_known(name, bmft, study, marked, options, tmp_path, capsys):
    arguments, written = command_lines(options, tmp_path)[name]
    assert bmft(name, study / "model.pt", *arguments) in (0, 1)
    rows, known = kept_by_hand(marked)
    unknown = len(rows) - len(known)
    said = capsys.readouterr().err
    assert f"sex: {unknown} rows unknown (" in said
    assert "malignant: 40 rows without a label (-1: 24, blank: 16) in test" in said
    found = json.loads((tmp_path / written).read_text())
    values = [one["value"] for one in found["assumed"]["unknown"]]
    assert any(value.startswith(f"sex: {unknown} rows unknown (") for value in values)
    if name in ("audit", "gate"):
        assert (found["n"], found["unknown"]) == (len(rows), {"sex": unknown})


def test_an_audit_is_that_of_the_rows_kept_by_hand(bmft, study, marked, options, tmp_path):
    model, rest = study / "model.pt", [*options[2:], "--sensitive", "age:60", "--quiet"]
    assert bmft("audit", model, "--data", options[1], *rest, "--json", "marked.json") == 0
    rows, _ = kept_by_hand(marked)
    clean = rows.assign(
        sex=rows["sex"].where(rows["sex"].isin(["female", "male"]), ""), age=rows["age"].where(rows["age"] != "-1", "")
    )
    clean.to_csv(tmp_path / "clean.csv", index=False)
    assert bmft("audit", model, "--data", "clean.csv", *rest, "--json", "clean.json") == 0
    ours, theirs = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("marked", "clean"))
    for key in ("n", "unknown", "by_group", "gaps", "overall"):
        assert ours[key] == theirs[key]


def test_parquet_says_the_same_as_the_csv(bmft, study, marked, options, tmp_path):
    marked.assign(age=pd.to_numeric(marked["age"]), malignant=pd.to_numeric(marked["malignant"])).to_parquet(
        "m.parquet"
    )
    rest = [*options[2:], "--sensitive", "age:60", "--quiet", "--json"]
    assert bmft("audit", study / "model.pt", "--data", "m.parquet", *rest, "p.json") == 0
    assert bmft("audit", study / "model.pt", "--data", options[1], *rest, "c.json") == 0
    parquet, csv = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "pc")
    assert parquet["by_group"] == csv["by_group"]
    assert parquet["assumed"]["unknown"] == csv["assumed"]["unknown"]


@pytest.mark.parametrize(("meaning", "value"), [("positive", 1), ("negative", 0)])
def test_labels_of_minus_one_are_what_uncertain_says(bmft, study, marked, options, tmp_path, meaning, value, capsys):
    arguments = [*options, "--uncertain", meaning, "--blank", "negative", "--json", "a.json"]
    assert bmft("audit", study / "model.pt", *arguments) == 0
    rows = marked[marked["split"] == "test"]
    labels = rows["malignant"].replace({"-1": str(value), "": "0"}).astype(int)
    figures = json.loads((tmp_path / "a.json").read_text())["by_group"]["sex"]
    for group in ("female", "male"):
        assert figures[group]["n_positive"] == labels[rows["sex"] == group].sum()
    assert f"malignant: 24 rows (-1: 24) read as {meaning} in test" in capsys.readouterr().err


def test_codes_are_added_and_taken_away(bmft, study, options, tmp_path):
    def groups(*said):
        assert bmft("audit", study / "model.pt", *options, *said, "--quiet", "--json", "a.json") == 0
        return set(json.loads((tmp_path / "a.json").read_text())["by_group"]["sex"])

    assert groups() == {"female", "male"}
    assert groups("--unknown", "sex=") == {"female", "male", *CODES}
    assert groups("--unknown", "sex=", "--unknown", "sex=-1") == {"female", "male", *CODES} - {"-1"}


def test_a_wrong_column_before_a_code_is_a_usage_error(bmft, study, options, capsys):
    assert bmft("audit", study / "model.pt", *options, "--unknown", "sexx=9") == 2
    assert "Did you mean 'sex'" in capsys.readouterr().err


def test_a_file_of_options_may_name_the_codes(bmft, study, options, tmp_path):
    (tmp_path / "c.toml").write_text('unknown = ["female"]\n', encoding="utf-8-sig")
    assert bmft("audit", study / "model.pt", *options, "--config", "c.toml") == 4  # one group is left


@pytest.mark.parametrize("command", ["audit", "gate"])
def test_predictions_leave_out_what_is_not_known(bmft, tmp_path, marked, command, capsys):
    rows = marked[marked["split"] == "test"]
    scores = [(17 * i % 100) / 100 for i in range(len(rows))]
    table = rows.assign(y_true=rows["malignant"], y_score=scores)[["y_true", "y_score", "sex"]]
    table.to_csv(tmp_path / "p.csv", index=False)
    (tmp_path / "p.toml").write_text(POLICY)
    policy = ["--policy", "p.toml"] if command == "gate" else ["--sensitive", "sex"]
    assert bmft(command, "--predictions", "p.csv", *policy, "--json", "a.json") in (0, 1)
    all_rows, known = kept_by_hand(marked)
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["n"] == len(all_rows)
    assert found["unknown"] == {"sex": len(all_rows) - len(known)}
    assert "y_true: 40 rows without a label (-1: 24, blank: 16)" in capsys.readouterr().err
    if command == "audit":
        women = table[(table["sex"] == "female") & table["y_true"].isin(["0", "1"])]
        auc = roc_auc_score(women["y_true"].astype(int), women["y_score"])
        assert found["by_group"]["sex"]["female"]["roc_auc"] == pytest.approx(auc)


# ---- image paths


def test_ids_without_an_ending_are_refused_with_the_ending_that_is_there(bmft, study, options, marked, capsys):
    marked.assign(path=marked["path"].str.removesuffix(".png")).to_csv(options[1], index=False)
    assert bmft("audit", study / "model.pt", *options) == 4
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("For ")
    assert ".png: say --suffix .png" in last


@pytest.mark.parametrize("suffix", ["png", *in_ci(".png")])
@pytest.mark.parametrize("slash", ["\\", *in_ci("/")])
def test_a_suffix_and_backslashes_find_the_same_images(bmft, study, options, marked, tmp_path, suffix, slash, capsys):
    assert bmft("audit", study / "model.pt", *options, "--json", "plain.json") == 0
    paths = marked["path"].str.removesuffix(".png").str.replace("/", slash) + "  "
    marked.assign(path=paths).to_csv(options[1], index=False)
    assert bmft("audit", study / "model.pt", *options, "--suffix", suffix, "--json", "ids.json") == 0
    plain, ids = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "ids"))
    assert ids["content_hash"] == plain["content_hash"]
    assert ("paths" in ids["assumed"]) == (slash == "\\")
    assert ("backslashes separate folders in 200 of 200 image paths" in capsys.readouterr().err) == (slash == "\\")


@pytest.mark.parametrize("name", ["gate", *in_ci("debias")])
def test_other_commands_take_a_suffix(name, bmft, study, options, marked, tmp_path):
    marked.assign(path=marked["path"].str.removesuffix(".png")).to_csv(options[1], index=False)
    arguments, _ = command_lines(options, tmp_path)[name]
    assert bmft(name, study / "model.pt", *arguments, "--suffix", ".png") in (0, 1)


# ---- rows in several sets


@pytest.fixture
def shared(study, tmp_path):
    """A table in which ten pictures of fit are in test, too, under the names of other files."""
    table = pd.read_csv(study / "isic.csv", dtype=str, keep_default_na=False)
    copies = table[table["split"] == "fit"].head(10)
    for place, path in enumerate(copies["path"]):
        (tmp_path / f"copy{place}.png").write_bytes((study / path).read_bytes())
    table["path"] = [str(study / path) for path in table["path"]]
    more = copies.assign(path=[f"copy{i}.png" for i in range(10)], split="test", patient_id="")
    pd.concat([table, more]).to_csv(tmp_path / "shared.csv", index=False)
    common = ["--label", "malignant", "--sensitive", "sex", "--image-size", 32, "--split-column", "split"]
    return ["--data", tmp_path / "shared.csv", *common, "--cluster", "patient_id", "--seed", 1]


@pytest.mark.parametrize("name", ["debias", *in_ci("compare", "search")])
def test_shared_rows_are_refused_unless_they_are_allowed(name, bmft, study, shared, tmp_path, capsys):
    arguments, written = command_lines(shared, tmp_path)[name]
    assert bmft(name, study / "model.pt", *arguments) == 4
    assert "10 of the 250 test rows are fit rows too" in capsys.readouterr().err
    assert bmft(name, study / "model.pt", *arguments, "--allow-shared-rows") in (0, 1)
    assert "10 of the 250 test rows are fit rows too" in capsys.readouterr().err
    splits = json.loads((tmp_path / written).read_text())["assumed"]["splits"]
    assert any(one["option"] == "--allow-shared-rows" for one in splits)


def test_one_path_in_two_splits_is_refused_by_an_audit_unless_it_is_allowed(bmft, study, shared, tmp_path, capsys):
    table = pd.read_csv(tmp_path / "shared.csv", dtype=str, keep_default_na=False)
    first = table[table["split"] == "fit"].head(1).assign(split="test", patient_id="")
    pd.concat([table, first]).to_csv(tmp_path / "shared.csv", index=False)
    assert bmft("audit", study / "model.pt", *shared) == 4
    assert "--allow-shared-rows" in capsys.readouterr().err
    assert bmft("audit", study / "model.pt", *shared, "--allow-shared-rows") == 0


@pytest.mark.ci
def test_one_split_for_two_sets_is_refused_unless_it_is_allowed(bmft, study, data_options, capsys):
    arguments = [study / "model.pt", *data_options, "--method", "threshold", "--select", "test"]
    assert bmft("debias", *arguments) == 4
    assert "--select and --test both name the split 'test'" in capsys.readouterr().err
    assert bmft("debias", *arguments, "--allow-shared-rows") in (0, 1)


def test_splits_named_twice_are_taken_together(bmft, study, data_options, tmp_path):
    named = ["--test", "select", "--test", "test", "--json", "a.json"]
    assert bmft("audit", study / "model.pt", *data_options, *named) == 0
    assert json.loads((tmp_path / "a.json").read_text())["n"] == 360
