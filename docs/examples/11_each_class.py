"""
The mean stays, the classes trade
=================================

Where the mean loss alone is kept, one class may gain what another loses. ``gf.by_class`` keeps the loss of each.
"""

# %%
import matplotlib.pyplot as plt

import geoflow as gf

prepared = gf.experiments.get("iris_ff").prepare(seed=0)
classes = gf.by_class(prepared.problem)


def loss_of(k):
    return lambda theta: float(classes.value_and_gradient(theta)[0][k])


observables = {f"class_{k}": loss_of(k) for k in range(3)}
walks = {
    "the mean is kept": gf.LevelSet(prepared.problem),
    "each class is kept": gf.LevelSet(gf.by_class(prepared.problem)),
}
walks = {
    name: gf.walk(
        gf.RegularizingFlow(level_set, gf.regularizers.squared_norm),
        t_end=0.5,
        observables=observables,
    )
    for name, level_set in walks.items()
}

# %%
# Above the loss of each class, below R, along both walks.

# sphinx_gallery_alt = "The losses of three classes change where only their mean is kept, and stay where each is kept"
plt.rcParams.update(gf.plots.STYLE)
figure, axes = plt.subplots(2, 2, figsize=(7, 4.5), sharex=True, sharey="row", layout="constrained")
for column, (name, ds) in zip(axes.T, walks.items(), strict=True):
    for k, species in enumerate(("setosa", "versicolor", "virginica")):
        column[0].plot(ds.snapshot_time, ds[f"class_{k}"], label=species)
    column[1].plot(ds.time, ds.regularizer)
    column[0].set(title=name, yscale="log")
    column[1].set(xlabel="flow time t")
axes[0, 0].set_ylabel("training loss of a class")
axes[1, 0].set_ylabel("R = ‖θ‖²")
axes[0, 0].legend()
plt.show()
