"""
How good, how bad at one training loss
======================================

R need not be a norm. Any other problem's loss is one, here that on unseen flowers: one walk goes down it, another up it,
a third down ‖θ‖² as usual. All four networks, the three ends and the start, have the same training loss.
"""

# %%
# (To go *down* the test loss is to train on the test set. It is done here to see how far the level set reaches, and
# its end says nothing of how well a network can do.)
import matplotlib.pyplot as plt

import geoflow as gf

prepared = gf.experiments.get("iris_ff").prepare(seed=0)
test = prepared.test
unseen = gf.Problem.from_module(prepared.module, prepared.loss_fn, test.inputs, test.targets)
level_set = gf.LevelSet(prepared.problem)
wanted = {
    "up the test loss": gf.regularizers.loss(unseen, sign=-1),
    "down ‖θ‖²": gf.regularizers.squared_norm,
    "down the test loss": gf.regularizers.loss(unseen),
}
walks = {
    name: gf.walk(
        gf.RegularizingFlow(level_set, regularizer),
        max_evaluations=400,
        observables=prepared.observables,
    )
    for name, regularizer in wanted.items()
}

# %%
# The test loss against the way gone in θ, and how well the training loss is kept on it.

# sphinx_gallery_alt = "Test loss against the way gone in θ: walks up, down the norm and down the test loss part from one start"
plt.rcParams.update(gf.plots.STYLE)
figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained")
for name, ds in walks.items():
    way = ds.arc_length[ds.snapshot_step]
    axes[0].plot(way, ds.test_loss, label=f"{name}: {ds.status}")
    axes[1].plot(ds.arc_length, abs(ds.level_residual) / ds.level, ".", label=name)
axes[0].set(xlabel="arc length in θ", ylabel="test loss", yscale="log")
axes[1].set(xlabel="arc length in θ", ylabel="|L − c|/c", title="and the training loss stays")
for ax in axes:
    ax.set_xscale("symlog", linthresh=0.01)
    ax.set_xlim(left=0)
axes[0].legend()
plt.show()
