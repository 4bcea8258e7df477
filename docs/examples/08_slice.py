"""
The walk over a slice of the landscape
======================================

The loss on the plane of the walk's first two principal components, and the walk projected on it.
"""

# %%
import geoflow as gf
from geoflow.analysis import landscape

prepared = gf.experiments.get("iris_ff").prepare(seed=0)
flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
ds = gf.walk(flow, observables=prepared.observables)
unseen = gf.Problem.from_module(
    prepared.module, prepared.loss_fn, prepared.test.inputs, prepared.test.targets
)
found = landscape.on_plane(ds, flow, points=31, observables={"test_loss": unseen})

# %%
# The black line is where the loss on the plane has the level's value. The walk, which keeps to the level, need not be on
# it: it leaves the plane, by the distance shown below. The level set itself has 31,102 dimensions.

# sphinx_gallery_alt = "Contours of training and test loss on a plane, the walk's projection on it, and its distance from it"
figure = gf.plots.slice_figure(found)
