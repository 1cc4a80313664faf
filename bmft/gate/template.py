"""A commented policy to start from, with what an audit measured beside every bound."""

import json
from collections.abc import Sequence

from bmft._common import one_line
from bmft.auditing import AuditReport
from bmft.gate.checking import check
from bmft.gate.policy import parse_policy
from bmft.gate.verdict import Result, figure

TOLERANCE = 0.1
_HEAD = """\
# A starting policy for `bmft gate`, written from an audit of {n:,} samples.
# The bounds are placeholders, not advice: how large a gap may be is for those who answer for its use.
# Decide on them before looking at the figures of the model they are for.

[gate]
alpha = 0.05                # how often a model may pass although its true gap is the tolerance
on_inconclusive = "fail"    # exit 3 where the data cannot tell; "warn" and "pass" exit 0 and say so
min_positives = 30          # fewer in a group: inconclusive
"""
_TAIL = """
# A floor for the worst group, a ratio, an intersection, and the model against the one it replaces:
#
# [[check]]
# metric = "roc_auc"
# sensitive = [{names}]
# intersect = true            # needs two attributes
# min_group = 0.75
#
# [[check]]
# metric = "selection_rate"
# sensitive = [{names}]
# min_ratio = 0.8             # the four-fifths rule
#
# [[non_inferiority]]         # with --baseline CHECKPOINT
# metric = "roc_auc"
# margin = 0.02
# per_group = true
#
# [[waiver]]                  # a known failure; every output shows it
# check = "true_positive_rate/ATTRIBUTE"
# group = "GROUP"
# reason = "11 patients; collecting more, review 2027-03"
"""


def starting_policy(report: AuditReport, sensitive: Sequence[str], *, cluster: str | None = None) -> str:
    """The TOML text of a policy that bounds true and false positive rate and ROC AUC between groups.

    Args:
        report: an audit with its predictions.
        sensitive: the attributes as the policy is to write them, with cuts: ``"age:40,60"``.
        cluster: column of the patient, if there is one.
    """
    metrics = ("true_positive_rate", "false_positive_rate", "roc_auc")
    tables = [_check(metric, spec) for spec in sensitive for metric in metrics]
    measured = check(report, parse_policy("\n".join(tables))).checks
    per_table = len(measured) // len(tables)
    commented = [
        "\n".join([*map(_measured, measured[place * per_table : (place + 1) * per_table]), table])
        for place, table in enumerate(tables)
    ]
    head = _HEAD.format(n=report.n)
    if cluster is not None:
        head += f"cluster = {_quoted(cluster)}        # several samples of one patient are not independent\n"
    return "\n".join([head, *commented]) + _TAIL.format(names=", ".join(map(_quoted, sensitive)))


def _check(metric: str, spec: str) -> str:
    return f'[[check]]\nmetric = "{metric}"\nsensitive = [{_quoted(spec)}]\nmax_difference = {TOLERANCE}\n'


def _measured(result: Result) -> str:
    largest = f"# {one_line(result.id)}: largest difference {figure(result.estimate)}"
    if result.certifies == result.certifies:
        return f"{largest}; these data can certify {figure(result.certifies)} and more"
    return f"{largest}; {one_line(result.reason)}"


def _quoted(text: str) -> str:
    # JSON's texts are TOML's, but for one character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
