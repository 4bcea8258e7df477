"""
Curvature along a walk
======================

Spectra of the Hessian of the loss and of A, which decides how stiff the flow is on the level set, at points of one walk.
Matrix-free: only Hessian-vector products are used.
"""

# %%
import geoflow as gf
from geoflow.analysis import spectra

prepared = gf.experiments.get("iris_ff").prepare(seed=0)
flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
ds = gf.walk(flow)
found = spectra.along(ds, flow, k=3, n_probes=4, n_steps=40, n_trace=30, max_products=150)

# %%
# Each curve is one time: the number of eigenvalues by their size. Most are near zero; six or seven stand far out, and these
# make the flow stiff. The bulk of A lies at 2, the curvature of ‖θ‖².

# sphinx_gallery_alt = "Spectral densities of the Hessian and of A at five flow times, with a bulk near zero and outliers"
figure = gf.plots.waterfalls(found)

# %%
# The extreme eigenvalues, with their residuals as bars:

# sphinx_gallery_alt = "The largest and smallest eigenvalues of both operators over flow time"
figure = gf.plots.extremes(found)

# %%
largest = found.largest_eigenvalue.isel(rank=0).to_pandas()
print(largest)
