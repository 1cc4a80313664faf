"""
A gate that knows what it cannot tell
=====================================

A policy is a file under version control. The gate holds what a model says against it and decides from intervals:
pass, fail, or inconclusive with the number of cases that would settle it.
"""

import numpy as np

import bmft
from bmft.gate import parse_policy, plan

policy = parse_policy("""
[gate]
alpha = 0.05

[[check]]
metric = "true_positive_rate"
sensitive = ["sex"]
max_difference = 0.1
""")

# %%
# Three models are made up: each misses a share of the women's positives more than of the men's.

SEX = (bmft.Attribute("sex", ("female", "male")),)


def predictions(cases: int, more_misses: float, seed: int = 0) -> bmft.Predictions:
    rng = np.random.default_rng(seed)
    targets, groups = rng.integers(0, 2, cases), rng.integers(0, 2, cases)
    found = rng.random(cases) < np.where(groups == 0, 0.85 - more_misses, 0.85)
    positive = np.where(targets == 1, found, rng.random(cases) < 0.1)
    return bmft.Predictions(np.where(positive, 0.8, 0.2), targets, groups, SEX)


# %%
# Alike in both groups, and enough cases to show it:

print(bmft.check(predictions(4000, more_misses=0.0), policy).to_text())

# %%
# A gap twice as large as what is tolerated is shown to be one:

print(bmft.check(predictions(4000, more_misses=0.2), policy).to_text())

# %%
# The first model again, on 200 cases. A gap of points would have passed or failed by chance; the gate says that it
# cannot tell, and how many cases would do.

verdict = bmft.check(predictions(200, more_misses=0.0, seed=2), policy)
print(verdict.to_text())
verdict.decision, verdict.exit_code

# %%
# Better asked before the data are collected: how many positives in each group does a tolerance of .1 need, where .85
# of them are found?

needed = plan(tolerance=0.1, rate=0.85)
needed

# %%
# Tolerances are dear: half of one takes about four times as many.

import matplotlib.pyplot as plt

tolerances = [0.05, 0.075, 0.1, 0.15, 0.2]
figure, axes = plt.subplots(figsize=(6, 3))
for rate in (0.7, 0.85, 0.95):
    axes.plot(tolerances, [plan(each, rate).per_group for each in tolerances], marker="o", label=f"rate {rate}")
axes.set(xlabel="tolerance", ylabel="positives in each group", yscale="log")
_ = axes.legend()

# %%
# In a test suite one line does it; what fails is named with its figures.

from bmft.testing import assert_fair

try:
    assert_fair(predictions(4000, more_misses=0.2), None, policy)
except AssertionError as failure:
    print(failure)
