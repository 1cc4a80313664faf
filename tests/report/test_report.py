"""Reports: what the three files hold, that they say the same, and that nothing can break out of them."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from bmft._common import Assumption
from bmft.auditing import AuditReport, Predictions
from bmft.inference import audit
from bmft.report import DebiasReport, changes as changes_module, to_html, to_json, to_markdown, versions, write_report
from bmft.report.changes import paired_changes
from bmft.tables import Attribute

GOLDEN = Path(__file__).parent / "golden"
SEX, AGE = Attribute("sex", ("female", "male")), Attribute("age", ("<40", "40-60", "60+"))
BLOCKS = {
    "stem": {"importance": None, "selected": 3, "moved": 0, "total": 30},
    "layer1.0": {"importance": 0.75, "selected": 40, "moved": 40, "total": 100},
    "head": {"importance": 0.25, "selected": 0, "moved": 0, "total": 10},
}
VOID = {"meta", "img", "br", "link", "input", "hr"}


def predictions(
    strength: float, attributes: tuple[Attribute, ...] = (SEX, AGE), n: int = 400, columns: int = 1, **fields: object
) -> Predictions:
    """Drawn from one seed: the same rows each time, scored by a model whose bias has the given strength."""
    rng = np.random.default_rng(3)
    groups = np.stack([rng.integers(0, len(attribute.groups), n) for attribute in attributes], axis=1)
    groups[::50, 0] = -1
    targets = (rng.random((n, columns)) < 0.35).astype(int)
    logits = 2 * targets - 1 + rng.normal(0, 1, (n, columns)) + strength * (groups.sum(1, keepdims=True) - 1)
    scores = 1 / (1 + np.exp(-logits))
    return Predictions(scores, targets, groups, attributes, **fields)


def report(before: Predictions, after: Predictions, **fields: object) -> DebiasReport:
    history = [
        {"step": 0, "epoch": 0, "loss": float("nan"), "gap": 0.3, "roc_auc": 0.9, "eligible": True, "chosen": False},
        {"step": 1, "epoch": 1, "loss": 0.4, "gap": 0.2, "roc_auc": 0.89, "eligible": True, "chosen": True},
        {"step": 2, "epoch": 1, "loss": 0.3, "gap": 0.1, "roc_auc": 0.8, "eligible": False, "chosen": False},
    ]
    layers = {
        "conv1.weight": {"selected": 3, "total": 30, "fraction": 0.1},
        "layer1.0.conv1.weight": {"selected": 40, "total": 100, "fraction": 0.4},
    }
    values: dict[str, object] = {
        "method": "bmft",
        "accepted": True,
        "reason": "step 1, epoch 1 has the smallest gap -> kept",
        "before": audit(before, resamples=50),
        "after": audit(after, resamples=50),
        "evaluated_on": "test",
        "config": {
            "checkpoint": "models/melanoma.pt",
            "data": "isic.csv",
            "lr": [0.001, 0.01],
            "bmft": {"fraction": 0.05},
        },
        "history": history,
        "mask": {"density": 0.33, "by_layer": layers, "by_block": BLOCKS},
        "seconds": {"importance": 1.234},
        "versions": {"torch": "2.6.0"},
        "hashes": {"checkpoint": "ab" * 32},
        "skipped": 2,
    }
    return DebiasReport(**{**values, **fields})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def done() -> DebiasReport:
    return report(predictions(1.0), predictions(0.2))


@pytest.fixture(scope="module")
def page(done: DebiasReport) -> str:
    return to_html(done)


class Reader(HTMLParser):
    """Reads a page strictly: every tag closed in order; keeps ids, headings and the cells of each table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.charts: list[dict[str, str | None]] = []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "svg":
            self.charts.append(dict(attrs))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag in ("h1", "h2"):
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings[-1] += data
        if {"td", "th"} & set(self.open[-2:]):
            self.tables[-1][-1][-1] += data


def markdown_tables(text: str) -> Iterator[list[list[str]]]:
    for block in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        yield [[cell.strip() for cell in row] for row in rows]


def test_the_json_has_the_contract_s_keys_and_no_nan(done):
    found = json.loads(to_json(done), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["schema"] == 1
    assert {
        "method",
        "accepted",
        "reason",
        "before",
        "after",
        "config",
        "history",
        "mask",
        "seconds",
        "versions",
    } <= set(found)
    assert found["history"][0]["loss"] is None
    assert found["before"]["by_group"]["sex"]["male"]["n"] == int((done.before.predictions.groups[:, 0] == 1).sum())
    assert isinstance(found["after"]["gaps"]["age"]["equalized_odds_difference"], float)
    assert found["mask"]["by_layer"]["conv1.weight"]["selected"] == 3
    split = found["auc_split"]["sex"]["after"]
    pooled = split["share"] * split["within"] + (1 - split["share"]) * split["between"]
    assert pooled == pytest.approx(found["after"]["overall"]["roc_auc"])


def test_the_json_of_an_audit_reads_back_as_the_same_audit(done):
    again = AuditReport.from_dict(json.loads(to_json(done.before)))
    assert to_json(again) == to_json(done.before)


def test_the_same_report_gives_the_same_bytes_whatever_the_plot_style(done, page, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    write_report(done, first)
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": True}):
        write_report(done, second)
    for name in ("report.html", "report.json", "report.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (first / "report.html").read_text(encoding="utf-8") == page


def test_a_date_is_there_only_if_given(done, page, plain_charts):
    assert "2031-05-06" in to_html(done, date="2031-05-06")
    assert "2031-05-06" in to_markdown(done, date="2031-05-06")
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", page)


def test_the_page_tells_the_decision_first_and_its_limits_last(page):
    headings = Reader(page).headings
    assert re.fullmatch(r"The gap between groups of (sex|age) fell from 0\.\d{3} to 0\.\d{3}", headings[0])
    assert headings[1] == "In short"
    assert headings[-1] == "What this does not say"


def test_the_page_needs_no_other_file_and_runs_nothing(page):
    assert "script" not in Reader(page).tags
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page)
    assert not re.search(r"https?:|@import|url\((?!#)", page)


def test_every_id_is_unique_and_every_reference_finds_its_id(page):
    ids = Reader(page).ids
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    wanted |= {name for names in re.findall(r'aria-labelledby="([^"]+)"', page) for name in names.split()}
    assert wanted <= set(ids)


def test_every_chart_has_a_role_a_title_and_its_numbers_in_words(page):
    charts = Reader(page).charts
    assert len(charts) > 15
    assert all(chart["role"] == "img" for chart in charts)
    for name in (chart["aria-labelledby"].split()[0].removesuffix("-title") for chart in charts):
        title, text = (
            re.search(rf'<{tag} id="{name}-{kind}">(.*?)</{tag}>', page)[1]
            for tag, kind in (("title", "title"), ("desc", "desc"))
        )
        assert title
        assert re.search(r"\d", text), name


def test_every_rate_of_a_group_has_a_count_and_an_interval_beside_it(page):
    tables = [
        table for table in Reader(page).tables if table[0][0] == "Group" and "Change" in table[0] and len(table[0]) == 5
    ]
    assert len(tables) == 8  # four measures of two attributes
    for row in (row for table in tables for row in table[1:]):
        assert row[1].replace("\u202f", "").isdigit()
        assert all(re.fullmatch(r"[01]\.\d{3} 0\.\d{3} to [01]\.\d{3}", cell) for cell in row[2:4]), row


def test_markdown_and_html_have_the_same_tables(done, page):
    def flat(cell: str) -> str:
        return " ".join(re.sub(r"[()\\]", " ", cell.replace("&lt;", "<")).split())

    ours = [[[flat(cell) for cell in row] for row in table] for table in Reader(page).tables]
    theirs = [
        [[flat(cell) for cell in row] for row in table[:1] + table[2:]] for table in markdown_tables(to_markdown(done))
    ]
    assert theirs == ours


def test_hostile_names_are_shown_not_obeyed():
    bad = '<script>alert("1")</script>|`&$x$ a_b *c*'
    attribute = Attribute(f"{bad}-attribute", (bad, "--><style>*{}</style>"))
    hostile = report(
        predictions(1.0, (attribute,)), predictions(0.2, (attribute,)), reason=bad, config={"data": bad, bad: bad}
    )
    html, markdown = to_html(hostile, date=bad), to_markdown(hostile)
    read = Reader(html)
    assert "script" not in read.tags
    assert read.tags.isdisjoint({"i", "b"})
    assert html.count("<style>") == 1
    assert "&lt;script&gt;alert" in html
    assert "<script" not in markdown.split("\n---\n", 1)[1]
    for table in markdown_tables(markdown):
        assert {len(row) for row in table} == {len(table[0])}


def test_no_report_calls_a_model_fair(done, page):
    for text in (page, to_markdown(done), to_json(done), to_html(done.before)):
        assert not re.search(
            r"\b(is|are|was|now) (un)?(fair|biased)\b|unbiased|bias-free|fairer", text, flags=re.IGNORECASE
        )


def test_a_kept_original_is_said_and_shown_alone(done, plain_charts):
    kept = replace(done, accepted=False, after=done.before, reason="none of 20 epochs had a smaller gap")
    read = Reader(to_html(kept))
    assert read.headings[0] == "The original model was kept"
    assert not any("After" in table[0] for table in read.tables)
    assert "Original kept" in to_markdown(kept)


def test_a_refused_candidate_is_not_called_the_result(done, plain_charts):
    html = to_html(replace(done, accepted=False))
    headers = {cell for table in Reader(html).tables for cell in table[0]}
    assert {"Original", "Refused"} <= headers
    assert "After" not in headers


def test_an_epoch_taken_as_asked_is_not_said_to_meet_the_conditions(done):
    history = [{**entry, "chosen": entry["step"] == 2} for entry in done.history]
    asked = to_markdown(replace(done, history=history))
    assert "does not meet the conditions" in asked
    assert "met the conditions" not in asked
    assert "Accepted: the new model met the conditions" in to_markdown(done)


def test_an_audit_has_the_same_page_without_the_after_column(done, plain_charts):
    read = Reader(to_html(done.before))
    headers = {cell for table in read.tables for cell in table[0]}
    assert "Value" in headers
    assert headers.isdisjoint({"Before", "After", "Change"})
    assert read.headings[0].startswith("Error rates differ by up to 0.")
    assert "Group by group" in read.headings


def test_what_was_assumed_is_listed_with_where_it_came_from_and_how_to_say_otherwise(plain_charts):
    rows = Assumption("unknown", "sex: 12 rows unknown (-1: 9, unknown: 3)", "the codes for unknown", "--unknown")
    pixels = Assumption("pixels", "ImageNet's mean", "nothing says so", "--normalize", guess=True)
    before = audit(predictions(0.5, assumed=(rows, pixels)), resamples=20)
    tables = Reader(to_html(before)).tables
    (found,) = [table for table in tables if table[0] == ["About", "Taken", "From", "Say otherwise by"]]
    assert found[1] == ["unknown", rows.value, rows.source, rows.option]
    assert found[2] == ["pixels", pixels.value, "a guess: nothing says so", pixels.option]
    assert rows.value in to_markdown(before)
    (alone,) = [one for one in Reader(to_html(audit(predictions(0.5), resamples=20))).tables if one[0] == found[0]]
    assert [row[0] for row in alone[1:]] == ["classes"]


def test_measuring_on_the_selection_data_is_said(done):
    assert "not corrected for the choice" in to_markdown(replace(done, evaluated_on="select"))
    assert "also chose the epoch" not in to_markdown(done)


def test_a_constant_predictor_is_not_praised(plain_charts):
    constant = replace(predictions(0.0), scores=np.full((400, 1), 0.2))
    html = to_html(audit(constant, resamples=20))
    assert "no gap can be read from it" in html
    assert "Careful: constant predictor" in html


def test_what_cannot_be_measured_is_a_dash_and_no_zero(plain_charts):
    before, after = predictions(1.0), predictions(0.2)
    for each in (before, after):
        each.groups[:, 0] = np.where(each.targets[:, 0] == 1, 0, each.groups[:, 0])  # no positive male
        each.groups[:, 1] = np.minimum(each.groups[:, 1], 1)  # nobody of 60 and more
    read = Reader(to_html(report(before, after)))
    male = [row for table in read.tables for row in table[1:] if row[:2] == ["male", "0"]]
    assert len(male) == 3  # true positive rate, and ROC before and after
    assert {cell for row in male for cell in row[2:]} == {"–"}
    absent = [
        row
        for table in read.tables
        if table[0][:3] == ["Attribute", "Group", "Cases"]
        for row in table
        if row[1] == "60+"
    ]
    assert absent == [["age", "60+", "0", "0", "0"]]


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_several_classes_or_labels_have_a_page_and_a_table_for_each(task, plain_charts):
    before, after = (
        predictions(strength, columns=3, task=task, classes=("nv", "mel", "bcc")) for strength in (1.0, 0.2)
    )
    if task == "multiclass":
        for each in (before, after):
            each.scores[:] /= each.scores.sum(1, keepdims=True)
            each.targets[:] = np.eye(3, dtype=int)[each.targets.argmax(1)]
    html = to_html(report(before, after))
    assert "mean over them" in html
    assert "Gap between groups of sex, worst class" in html
    classes = [table for table in Reader(html).tables if table[0][:2] == ["Class", "Group"]]
    assert {row[0] for row in classes[0][1:]} == {"nv", "mel", "bcc"}
    assert "ROC, mel, before" in html


def test_optional_pages_appear_where_they_are_given(done, plain_charts):
    class Case:
        png = b"\x89PNG\r\n\x1a\n"
        text = "sex: male. Row 3, melanoma: score 0.20 before, 0.80 after."

    trials = [{"number": 0, "value": 0.8, "state": "complete"}, {"number": 1, "value": None, "state": "pruned"}]
    extra = {
        "pixels": [Case()],
        "evaluations": {"Hospital B": {"before": done.before, "after": done.after}},
        "leakage": {"sex": {"before": 0.71, "after": 0.66, "after_interval": [0.6, 0.7]}},
        "search": {
            "objective": "worst_group_roc_auc",
            "trials": trials,
            "importances": {"lr": 0.7, "layer4": 0.3},
            "pareto": [{"number": 0, "gap": 0.1, "roc_auc": 0.9, "chosen": True}],
            "mask": {"layer1": {"norm": True}, "layer2": {"norm": False, "conv": True}},
            "select": 0.8,
            "image_passes": 12000,
        },
    }
    full = replace(done, extra=extra)
    html = to_html(full)
    expected = {"What changed in the pixels", "On other sites' data", "The search"}
    assert expected <= set(Reader(html).headings)
    assert expected.isdisjoint(Reader(to_html(done)).headings)
    assert 'src="data:image/png;base64,iVBORw0KGgo="' in html
    written = json.loads(to_json(full))
    assert written["evaluations"]["Hospital B"]["after"]["n"] == 400
    assert written["leakage"]["sex"]["after"] == 0.66
    assert written["search"]["trials"][1]["value"] is None


def test_the_model_card_block_is_what_the_hub_reads(done):
    yaml = pytest.importorskip("yaml")
    hub = pytest.importorskip("huggingface_hub.repocard_data")
    block = to_markdown(done).split("---\n")[1]
    card = yaml.safe_load(block)
    name, results = hub.model_index_to_eval_results(card["model-index"])
    assert name == "melanoma"
    assert {(result.dataset_name, result.dataset_split, result.task_type) for result in results} == {
        ("isic", "test", "image-classification")
    }
    values = {result.metric_name.split(" (9")[0]: result.metric_value for result in results}
    assert values["ROC AUC"] == pytest.approx(done.after.overall["roc_auc"], abs=1e-6)
    assert values["Equalized odds, difference between groups of age"] == pytest.approx(
        done.after.gaps["age"]["equalized_odds_difference"], abs=1e-6
    )


def test_the_model_card_of_a_kept_original_has_the_original_s_figures(done):
    yaml = pytest.importorskip("yaml")
    card = yaml.safe_load(to_markdown(replace(done, accepted=False)).split("---\n")[1])
    auc = card["model-index"][0]["results"][0]["metrics"][0]
    assert auc["value"] == pytest.approx(done.before.overall["roc_auc"], abs=1e-6)


def test_a_failing_write_leaves_the_old_report(done, tmp_path, monkeypatch, plain_charts):
    (tmp_path / "report.html").write_text("old")

    def broken(source: object, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_report(done, tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_versions_name_what_a_result_depends_on():
    found = versions()
    assert {"python", "bmft", "torch", "numpy"} <= set(found)
    assert "optuna-that-is-not-there" not in found


@pytest.mark.parametrize("name", ["report.md", "report.json", "audit.md"])
def test_the_report_of_fixed_figures_is_the_golden_file(name):
    assert golden()[name] == (GOLDEN / name).read_text(encoding="utf-8")


def golden() -> dict[str, str]:
    """Reports of scores made by a formula; ``python tests/report/test_report.py`` writes them anew."""
    n = 240
    groups, targets = np.arange(n) % 2, (np.arange(n) // 2) % 3 == 0
    base = 0.5 + 0.3 * np.where(targets, 1, -1) + 0.35 * np.sin(np.arange(n) * 1.7)
    sides = [Predictions(np.clip(base + tilt * groups, 0.01, 0.99), targets, groups, (SEX,)) for tilt in (0.25, 0.1)]
    fixed = replace(report(*sides), before=audit(sides[0], intervals=False), after=audit(sides[1], intervals=False))
    alone = replace(audit(sides[0], intervals=False), content_hash="cd" * 32)
    audited = re.sub(r"#### Versions\n.*?(?=\n## )", "", to_markdown(alone), flags=re.DOTALL)  # they differ by machine
    return {"report.md": to_markdown(fixed), "report.json": to_json(fixed), "audit.md": audited}


# Where the gap sits.


def network_card(done: DebiasReport, blocks: dict[str, object]) -> str:
    page = to_html(replace(done, mask={**done.mask, "by_block": blocks}))
    found = re.search(r'aria-labelledby="network-title.*?</svg>', page, re.DOTALL)
    return found[0] if found else ""


def test_the_network_is_drawn_from_input_to_output_with_what_each_block_carries(done):
    drawn = network_card(done, BLOCKS)
    words = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert [word for word in words if word in {"input", *BLOCKS, "logits"}] == ["input", "logits", *BLOCKS]
    assert words[words.index("layer1.0") :][:3] == ["layer1.0", "75", "40"]
    assert words[words.index("stem") :][:2] == ["stem", "0"]
    assert "most of it in layer1.0 (75 %), head (25 %)" in drawn
    assert "1 of 3 blocks moved" in drawn


def test_blocks_that_are_more_than_a_screen_holds_are_drawn_as_neighbours(done):
    part = {"importance": 1 / 50, "selected": 1, "moved": 1, "total": 4}
    drawn = network_card(done, {f"blocks.{place}": part for place in range(50)})
    assert "blocks.0 to 2" in drawn
    assert "blocks.48 to 49" in drawn
    assert "17 of 17 blocks moved" in drawn


def test_a_mask_whose_blocks_are_not_known_has_no_picture(done, plain_charts):
    assert network_card(done, {}) == ""


def test_where_the_original_was_kept_the_picture_says_that_nothing_moved(done, plain_charts):
    still = {name: {**part, "moved": 0} for name, part in BLOCKS.items()}
    assert "Nothing moved" in network_card(done, still)


# How far a group's figures moved.


def test_rates_move_as_counted_and_no_change_is_unclear():
    before, after = predictions(1.0), predictions(0.2)
    found = paired_changes(before, after, 0.5)
    men = (before.groups[:, 0] == 1) & (before.targets[:, 0] == 1)
    moved = (after.scores[men, 0] >= 0.5).mean() - (before.scores[men, 0] >= 0.5).mean()
    change = found["sex", "male", "true_positive_rate"]
    assert change.value == pytest.approx(moved)
    assert change.low < moved < change.high
    same = paired_changes(before, before, 0.5)["sex", "male", "roc_auc"]
    assert same.value == 0
    assert same.low < 0 < same.high


def test_the_interval_by_influence_agrees_with_the_closed_form(monkeypatch):
    before, after = predictions(1.0, n=20_000), predictions(0.4, n=20_000)
    closed = paired_changes(before, after, 0.5)
    monkeypatch.setattr(changes_module, "_closed_form", changes_module._by_influence)
    for place, change in paired_changes(before, after, 0.5).items():
        assert change.value == pytest.approx(closed[place].value)
        assert change.low == pytest.approx(closed[place].low, abs=0.001)
        assert change.high == pytest.approx(closed[place].high, abs=0.001)


def test_intervals_of_changes_count_patients_where_they_are_known():
    """Every image three times over: three times the rows, the same patients, the same interval."""
    before, after = predictions(1.0), predictions(0.2)

    def thrice(once: Predictions) -> Predictions:
        rows = np.repeat(np.arange(400), 3)
        return Predictions(once.scores[rows], once.targets[rows], once.groups[rows], once.attributes, clusters=rows)

    single = [replace(each, clusters=np.arange(400)) for each in (before, after)]
    one = paired_changes(*single, 0.5)
    three = paired_changes(thrice(before), thrice(after), 0.5)
    for place, change in one.items():
        assert three[place].low == pytest.approx(change.low, abs=1e-3)
        assert three[place].high == pytest.approx(change.high, abs=1e-3)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for file_name, text in golden().items():
        (GOLDEN / file_name).write_text(text, encoding="utf-8")
