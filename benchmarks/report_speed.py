"""The report for 20,000 rows and 8 groups, under 15 s and under 5 MB: python -m benchmarks.report_speed

The two audits it is written from are timed on their own.
"""

import json
import tempfile
import time

import numpy as np

from benchmarks.common import facts
from bmft.auditing import AuditReport, Predictions
from bmft.inference import audit
from bmft.report import DebiasReport, write_report
from bmft.tables import Attribute

ROWS, GROUPS = 20_000, 8
MOST_SECONDS, MOST_BYTES = 15.0, 5_000_000


def audits() -> tuple[AuditReport, AuditReport]:
    """The same drawn rows, scored by a model with a strong tilt between groups and by one with a weak one."""
    rng = np.random.default_rng(0)
    attribute = Attribute("skin_type*sex", tuple(f"type {i // 2 + 1}*{'fm'[i % 2]}" for i in range(GROUPS)))
    groups, targets = rng.integers(0, GROUPS, ROWS), (rng.random(ROWS) < 0.2).astype(int)
    logits = 2 * targets - 1.5 + rng.normal(size=ROWS)
    tilts = [1 / (1 + np.exp(-(logits + tilt * (groups - 3.5)))) for tilt in (0.3, 0.1)]
    before, after = (audit(Predictions(scores, targets, groups, (attribute,))) for scores in tilts)
    return before, after


def report(before: AuditReport, after: AuditReport) -> DebiasReport:
    """A run of 20 epochs with a mask over 60 layers, as ResNet-18 has."""
    epochs = [(step, epoch) for step in (1, 2) for epoch in range(1, 11)]
    history = [
        {"step": step, "epoch": epoch, "gap": 0.3 / (step + epoch), "roc_auc": 0.9, "eligible": True, "chosen": False}
        for step, epoch in epochs
    ]
    layers = {f"layer{i // 15}.{i % 15}.weight": {"selected": i, "total": 100, "fraction": i / 100} for i in range(60)}
    return DebiasReport(
        method="bmft",
        accepted=True,
        reason="benchmark",
        before=before,
        after=after,
        evaluated_on="test",
        history=history,
        mask={"density": 0.3, "by_layer": layers},
    )


def main() -> None:
    start = time.perf_counter()
    sides = audits()
    audited = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        size = write_report(report(*sides), folder).stat().st_size
    seconds = time.perf_counter() - audited
    found = {
        "benchmark": "report_speed",
        "rows": ROWS,
        "groups": GROUPS,
        "report_seconds": round(seconds, 2),
        "audits_seconds": round(audited - start, 2),
        "html_bytes": size,
        "met": seconds < MOST_SECONDS and size < MOST_BYTES,
        **facts(),
    }
    print(json.dumps(found))
    if not found["met"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
