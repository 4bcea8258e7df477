"""
Principal components beside null models
=======================================

A random walk in many dimensions has a smooth picture in its first two components too. So a walk's own says something
only beside those of what it might be mistaken for.
"""

# %%
import geoflow as gf
from geoflow.analysis import pca

prepared = gf.experiments.get("iris_ff").prepare(seed=0)
flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
ds = gf.walk(flow)
found = pca.along(ds, null_models=True)

# %%
# On the left: the walk's variance falls off faster than that of Brownian paths with its own step lengths. Beside it the
# scores. On the first component walk, Brownian path, straight line and relaxation look much alike.

# sphinx_gallery_alt = "Explained variance and scores of a walk, a Brownian path, a straight line and a relaxation"
figure = gf.plots.null_models(found)

# %%
# The test's statistic is the participation ratio of the components, 5/2 for a long Brownian path.
models = pca.null_models_of(found)
print(models.participation_ratio.to_pandas().round(2))
print(f"p = {float(models.p_value):.3f} that the steps are independent and isotropic")

# %%
# What a plane leaves out stands beside it: the distance of each point from the plane.

# sphinx_gallery_alt = "The walk in its first two principal components, and its distance from their plane beside"
figure = gf.plots.pca_plane(found)
