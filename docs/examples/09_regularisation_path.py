"""
A ridge path from one run
=========================

A walk ends where ∇R = −λ∇L: a stationary point of L + R/λ, one solution of weight decay. Followed from level to level,
the end gives the solution for every penalty 1/λ. For a linear model that is ridge regression, whose solutions
scikit-learn has in closed form: they must lie on the curves.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge

import geoflow as gf

data = load_diabetes()
inputs = (data.data - data.data.mean(0)) / data.data.std(0)
targets = (data.target - data.target.mean()) / data.target.std()
ridge = Ridge(alpha=0.5, fit_intercept=False).fit(inputs, targets)

# %%
# A problem of one linear layer, which starts close to the least-squares solution, and levels from there up to where the
# model knows nothing (a loss of 1).
module = torch.nn.Linear(10, 1, bias=False).double()
with torch.no_grad():
    module.weight[0] = torch.from_numpy(ridge.coef_)
problem = gf.Problem.from_module(module, torch.nn.functional.mse_loss, inputs, targets[:, None])
flow = gf.RegularizingFlow(gf.LevelSet(problem, level_rtol=1e-9), gf.regularizers.squared_norm)
least = np.mean((inputs @ np.linalg.lstsq(inputs, targets)[0] - targets) ** 2)
levels = least + np.geomspace(flow.level_set.level - least, 0.97 - least, 30)[1:]
path = gf.regularization_path(flow, levels, degrees=179.9)
print(f"{path.status}: {path.sizes['level']} points in {int(path.n_gradient[-1])} evaluations")

# %%
# Lines: the ten coefficients along the path. Circles: scikit-learn's closed form at eight penalties of its own. (Its
# alpha is for the sum over the 442 patients, the penalty 1/λ for their mean.)

# sphinx_gallery_alt = "Ten coefficients against the penalty, shrinking to zero; circles of ridge regression lie on the lines"
plt.rcParams.update(gf.plots.STYLE)
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
colours = plt.get_cmap("tab10").colors
for name, coefficient, colour in zip(data.feature_names, path.theta.values.T, colours, strict=True):
    ax.plot(path.penalty, coefficient, color=colour, linestyle="-", label=name)
for penalty in np.geomspace(2e-3, 20, 8):
    exact = Ridge(alpha=penalty * len(targets), fit_intercept=False).fit(inputs, targets).coef_
    ax.plot(np.full(10, penalty), exact, "o", markerfacecolor="none", color="black", markersize=5)
ax.set(xscale="log", xlabel="penalty 1/λ", ylabel="coefficient")
ax.legend(ncols=2)
plt.show()
