"""
Noise goes, the digits stay
===========================

``mnist_ff`` has 99,710 parameters and 1,000 training images. At one and the same training loss the walk makes it
better on images that it has not seen. What it does to the weights can be looked at.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import geoflow as gf

prepared = gf.experiments.get("mnist_ff").prepare(seed=0)
flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
ds = gf.walk(flow, stop=gf.Stationary(degrees=170), observables=prepared.observables)
print(
    f"{ds.status} after {int(ds.n_gradient[-1])} evaluations; the training loss is {ds.level:.2e} throughout"
)
print(f"test loss     {float(ds.test_loss[0]):.3f} → {float(ds.test_loss[-1]):.3f}")
print(f"test accuracy {float(ds.test_accuracy[0]):.2%} → {float(ds.test_accuracy[-1]):.2%}")

# %%
# The incoming weights of eight of the first layer's units, as images: above at the start, below at the end, in one
# scale. The random first weights, which training has not removed, are gone; what is left lies
# where digits have ink.

# sphinx_gallery_alt = "Weights of eight units as images: noise at the start of the walk, smooth patches in the middle at its end"
plt.rcParams.update(gf.plots.STYLE)
offset = int(ds.tensor_offset[0])
weights = ds.theta[:, offset : offset + 100 * 784].values.reshape(-1, 100, 28, 28)
units = np.argsort(-np.linalg.norm(weights[-1], axis=(1, 2)))[:8]
figure, axes = plt.subplots(2, 8, figsize=(7, 2), layout="constrained")
for row, snapshot, name in zip(axes, (0, -1), ("start", "end"), strict=True):
    for ax, unit in zip(row, units, strict=True):
        ax.imshow(weights[snapshot, unit], cmap="RdBu_r", vmin=-0.2, vmax=0.2)
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)

# %%
# Some of the test images that the two ends judge differently: what each says is above its image, right answers in green.
images, labels = prepared.test.inputs, prepared.test.targets
answers = []
for snapshot in (0, -1):
    gf.load_into(prepared.module, ds, snapshot=snapshot)
    with torch.no_grad():
        answers.append(prepared.module(images).argmax(1))
before, after = answers
mended, spoilt = (before != labels) & (after == labels), (before == labels) & (after != labels)
print(f"of {len(labels)} test images {int(mended.sum())} are mended and {int(spoilt.sum())} spoilt")

# sphinx_gallery_alt = "Digits whose answer changes along the walk, with the answers before and after"
figure, axes = plt.subplots(2, 8, figsize=(7, 2.3), layout="constrained")
for row, kind in zip(axes, (mended, spoilt), strict=True):
    for ax, index in zip(row, torch.nonzero(kind).flatten()[:8].tolist(), strict=False):
        ax.imshow(images[index].reshape(28, 28), cmap="gray_r")
        right = after[index] == labels[index]
        ax.set_title(
            f"{int(before[index])} → {int(after[index])}", color="green" if right else "firebrick"
        )
    for ax in row:
        ax.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("mended")
axes[1, 0].set_ylabel("spoilt")
plt.show()
