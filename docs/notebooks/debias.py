"""
From a biased classifier to a report
====================================

Lesions are drawn by formula: no photograph and no patient. In the archive that the classifier learns from, malignant
lesions on dark skin are rare, so it takes dark skin for a sign of a benign one.
"""

import bmft
from bmft.datasets import make_demo, train_demo_model

parts = make_demo(3000, seed=0, image_size=32)
model = train_demo_model(parts["train"], epochs=6)
{name: len(part) for name, part in parts.items()}

# %%
# Measured on the ``test`` part, of which nothing was learned and nothing will be chosen:

test = parts["test"].with_attributes("skin")
before = bmft.audit(model, test)
before

# %%
# One call looks for the weights that carry the gap, moves only those on ``fit``, and chooses on ``select`` among what
# does no harm inside the groups. The model that was given stays as it is.

outcome = bmft.debias(model, parts["fit"], parts["select"], sensitive="skin", test=parts["test"], seed=0)
outcome

# %%
# Why this one was kept:

print(outcome.reason)

# %%
# Every candidate as a point: the gap that is left, and what it costs.

_ = outcome.plot()

# %%
# Before and after on ``test``, with intervals.

_ = outcome.before.plot("true_positive_rate", after=outcome.after)

# %%
# What moved is a patch: it can be kept, shown, applied and taken back.

outcome.patch

# %%
# The report is one page of HTML, beside its JSON and Markdown. :doc:`/report` shows this one.

from pathlib import Path

folder = Path("../_build/extra/report")
bmft.write_report(outcome.report, folder)
sorted(path.name for path in folder.iterdir())
