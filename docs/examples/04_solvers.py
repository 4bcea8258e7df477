"""
What accuracy costs with each solver
====================================

The same flow, from the same point to the same flow time, with four solvers at three tolerances each. The flow is
stiff: the explicit method ``dopri5`` pays for stability whatever it is asked for; the others are made for such flows.
"""

# %%
# ``comparisons.compare`` walks with each of them, and measures each against a walk of a much tighter tolerance.
import geoflow as gf
from geoflow import comparisons

prepared = gf.experiments.get("iris_ff").prepare(seed=0)
flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
found = comparisons.compare(
    flow,
    ["exponential", "bdf", "rkc", "dopri5"],
    rtols=[1e-3, 1e-4, 1e-5],
    times=[0.1],
    reference="bdf",
    reference_rtol=1e-8,
)
print(found.evaluations.isel(snapshot=-1).to_pandas())

# %%
# Error of θ against evaluations of the gradient: further left is cheaper, further down is more accurate. A tolerance is
# not an error, and a looser one saves little with ``bdf``: from 1e-5 to 1e-3 a sixth of its evaluations.

# sphinx_gallery_alt = "Error against gradient evaluations of four solvers; dopri5 costs most, bdf least at small errors"
figure = gf.plots.work_precision(found).figure
