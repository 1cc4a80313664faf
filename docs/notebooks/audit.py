"""
An audit of anybody's predictions
=================================

An audit looks at what a model says and at nothing else, so the model may be of any framework. This one is
scikit-learn's, the data come with it, and torch is never loaded.
"""

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import bmft
from bmft.auditing import audit_predictions

# %%
# The measurements are of 569 tumours. The second hospital is made up: its instrument reads everything 15 % smaller,
# and the model has learned at the first one only.

table = load_breast_cancer()
malignant = 1 - table.target
rng = np.random.default_rng(0)
south = rng.random(len(malignant)) < 0.4
readings = np.where(south[:, None], 0.85, 1.0) * table.data
known = ~south & (rng.random(len(malignant)) < 0.5)
model = make_pipeline(StandardScaler(), LogisticRegression()).fit(readings[known], malignant[known])

# %%
# Scores, labels and groups are all that an audit needs. The last value of a cell is shown: here how many cases and
# positives there are in each group, the first thing to look at.

rest = ~known
predictions = bmft.Predictions(
    scores=model.predict_proba(readings[rest])[:, 1],
    targets=malignant[rest],
    groups=south[rest].astype(int),
    attributes=(bmft.Attribute("hospital", ("north", "south")),),
    classes=("benign", "malignant"),
)
predictions

# %%
# Every rate has an interval. In the south the model misses more malignant tumours; how many more is what the
# interval of the largest difference says.

audit = audit_predictions(predictions)
audit

# %%
# The same as a picture: one metric of every group, or, without a name, the main gaps.

_ = audit.plot("true_positive_rate")

# %%
# The order of the cases is good in both hospitals: their ROC curves hardly differ. What differs is where the
# threshold lies on them.

_ = predictions.plot("roc")

# %%
# And indeed the probabilities in the south are too low for what is observed.

_ = predictions.plot("reliability")

# %%
# As a tidy data frame the figures go into any other tool.

frame = audit.to_frame()
frame[frame["metric"].isin(["true_positive_rate", "false_positive_rate"])].round(3)
