"""
Networks that have the same training loss
=========================================

The smallest experiment of the paper: a network of four hidden layers, trained on 120 irises. The walk shrinks ‖θ‖²
and keeps the training loss. What becomes of the network?
"""

# %%
# ``prepare`` trains the network, from a seed that decides everything, and says what can be measured of it.
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_iris

import geoflow as gf

prepared = gf.experiments.get("iris_ff").prepare(seed=0)
flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
ds = gf.walk(flow, observables=prepared.observables)
print(f"{ds.status}: {ds.status_message}")

# %%
# The figure that every walk has:

# sphinx_gallery_alt = "Five panels: the angle rises to 175°, R and the test loss fall, the accuracy stays, the level is kept to 10⁻⁶"
figure = gf.plots.overview(ds)

# %%
# And what the two ends of the walk answer. Petal length and width vary, the sepals are the average ones; the colour is
# the class that the network takes for likeliest, its strength how sure the network is. Both fit the training flowers
# equally well. Far from the data, and between the classes, they differ.
iris = load_iris()
mean, std = iris.data.mean(0), iris.data.std(0)
length, width = np.meshgrid(np.linspace(0, 9, 200), np.linspace(0, 5, 200))
flowers = np.stack([np.full_like(length, m) for m in mean], -1)
flowers[..., 2], flowers[..., 3] = length, width
inputs = torch.tensor((flowers - mean) / std).reshape(-1, 4)

colours = np.array([[0, 114, 178], [213, 94, 0], [0, 158, 115]]) / 255

# sphinx_gallery_thumbnail_number = 2
# sphinx_gallery_alt = "Decision regions at the start and at the end of the walk, with wider and softer borders at the end"
plt.rcParams.update(gf.plots.STYLE)
figure, axes = plt.subplots(1, 2, figsize=(7, 3.4), sharey=True, layout="constrained")
for ax, snapshot, name in zip(axes, (0, -1), ("start", "end"), strict=True):
    gf.load_into(prepared.module, ds, snapshot=snapshot)
    with torch.no_grad():
        probability = prepared.module(inputs).softmax(1).numpy().reshape(*length.shape, 3)
    sure = (probability.max(-1, keepdims=True) - 1 / 3) * 1.5
    image = 1 - sure * (1 - colours[probability.argmax(-1)])
    ax.imshow(image, origin="lower", extent=(0, 9, 0, 5), aspect="auto", alpha=0.75)
    for k, colour in enumerate(colours):
        ax.plot(*iris.data[iris.target == k, 2:].T, ".", color=colour, label=iris.target_names[k])
    loss, test = float(ds.train_loss[snapshot]), float(ds.test_loss[snapshot])
    ax.set(
        title=f"{name}: training loss {loss:.2e}, test loss {test:.3f}", xlabel="petal length / cm"
    )
    ax.grid(False)
axes[0].set(ylabel="petal width / cm")
axes[0].legend(loc="upper left")
plt.show()
