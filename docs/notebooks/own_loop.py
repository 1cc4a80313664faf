"""
The mask in a loop of your own
==============================

`bmft.debias` is one call. Where the loop is yours (its optimizer, its schedule, its precision), take the pieces: which
weights carry the gap, which of them may move, and an optimizer that moves no other.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import bmft
from bmft import fairness

torch.manual_seed(0)

# %%
# Handwritten digits of 8 by 8 pixels: is it a five or larger? A second scanner is made up that reads weakly, and in
# the archive few large digits come from it.

digits = load_digits()
images = torch.from_numpy(digits.images).float()[:, None] / 16
large, weak = torch.from_numpy(digits.target) >= 5, torch.rand(len(images)) < 0.5
images = torch.where(weak[:, None, None, None], 0.35 * images, images) + 0.05 * torch.randn_like(images)
data = bmft.from_arrays(images, large.long(), weak.long(), attributes={"scanner": ("strong", "weak")})
archive, fit, test = data.split(0.4, 0.3, 0.3)
rare = (archive.targets == 1) & (archive.groups[:, 0] == 1)
archive = archive.subset(torch.nonzero(~rare | (torch.rand(len(archive)) < 0.1))[:, 0])

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 1),
)  # fmt: skip
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(12):
    for batch in torch.utils.data.DataLoader(archive, batch_size=64, shuffle=True):
        loss = nn.functional.binary_cross_entropy_with_logits(model(batch.inputs)[:, 0], batch.targets.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
before = bmft.audit(model.eval(), test)
before

# %%
# How much each weight matters to the gap, and to the task. Their ratio ranks the weights, and a tenth of them, outside
# the head, may move.

bias = bmft.weight_importance(model, fairness.equalized_odds_gap, fit)
task = bmft.weight_importance(model, fairness.cross_entropy, fit)
mask = bmft.WeightMask.top_fraction(bmft.relative(bias, to=task), 0.1).excluding("8.*")
mask

# %%
# The loop is an ordinary one: AdamW with weight decay, a schedule, batches of a data loader. Inside ``masked`` every
# step of the optimizer leaves the other weights as they are.

untouched = {name: p.detach().clone() for name, p in model.named_parameters()}
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
with bmft.masked(optimizer, model, mask):
    for _ in range(30):
        for batch in torch.utils.data.DataLoader(fit, batch_size=128, shuffle=True):
            scores = torch.sigmoid(model(batch.inputs))[:, 0]
            gap = fairness.equalized_odds_gap(scores, batch.targets, batch.groups[:, 0])
            loss = nn.functional.binary_cross_entropy(scores, batch.targets.float()) + gap
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()

# %%
# To the last bit:

moved = {name: p.detach() != untouched[name] for name, p in model.named_parameters()}
print(f"{sum(int(m.sum()) for m in moved.values()):,} weights moved")
print(f"{sum(int((m & ~mask.tensors[name]).sum()) for name, m in moved.items())} of them outside the mask")

# %%
# And what became of the gap, on images of neither set:

after = bmft.audit(model.eval(), test)
_ = before.plot("true_positive_rate", after=after)

# %%
after
