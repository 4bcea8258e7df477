"""
A level set one can see
=======================

With two parameters a level set is a curve, and the walk on it can be drawn. The loss is Himmelblau's function, which
has four minima; R(θ) = ‖θ‖² is the squared distance from the origin.
"""

# %%
# Any function of a flat tensor makes a problem. The level is the loss at the start.
import matplotlib.pyplot as plt
import numpy as np
import torch

import geoflow as gf


def himmelblau(theta):
    x, y = theta
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


start = torch.tensor([-4.05, -4.83], dtype=torch.float64)
problem = gf.Problem.from_function(himmelblau, start)
level_set = gf.LevelSet(problem)
flow = gf.RegularizingFlow(level_set, gf.regularizers.squared_norm)

# %%
# The walk goes down R along the curve, and ends where R has no slope along it any more. On its way an event is
# recorded: where it crosses the axis y = 0. It is located inside the step, and changes no step.
crossing = gf.Event(lambda theta: float(theta[1]), name="crosses_axis")
ds = gf.walk(flow, stop=gf.Stationary(degrees=179.9), events=[crossing])
print(
    f"{ds.status} after {int(ds.n_gradient[-1])} gradient evaluations at t = {float(ds.time[-1]):.2f}"
)
print(f"the loss stays {level_set.level:.4f}, to {float(abs(ds.level_residual).max()):.0e}")

# %%
# Thick is the level set, dots are the steps, the star is the event, and the dashed circle is R at the end. There the gradients of loss and
# R point in opposite directions, at an angle of 180°: the circle touches the level set from inside.

# sphinx_gallery_alt = "Contours of a loss with four minima; a walk follows one level line to its point nearest the origin, where it touches a circle"
x, y = np.meshgrid(np.linspace(-6, 6, 241), np.linspace(-6, 6, 241))
loss = himmelblau((x, y))
plt.rcParams.update(gf.plots.STYLE)
figure, ax = plt.subplots(figsize=(6, 5.6), layout="constrained")
ax.contourf(x, y, np.log10(loss + 1), 24, cmap="Blues_r", alpha=0.75)
ax.contour(x, y, loss, [level_set.level], colors="black", linewidths=2.2)
path = gf.interpolate(ds, np.linspace(0, float(ds.time[-1]), 400), flow)
ax.plot(path[:, 0], path[:, 1], color="#D55E00", linewidth=3, linestyle="-")
ax.plot(ds.theta[:, 0], ds.theta[:, 1], ".", color="#D55E00", markersize=9, markeredgecolor="white")
ax.plot(
    *ds.theta.values[ds.event.values == 1][0],
    "*",
    color="#CC79A7",
    markersize=17,
    markeredgecolor="white",
)
end = ds.theta[-1].values
radius = float(ds.regularizer[-1]) ** 0.5
ax.add_patch(plt.Circle((0, 0), radius, fill=False, linestyle="--", color="black"))
gradient = problem.value_and_gradient(torch.from_numpy(end))[1].numpy()
for name, vector in (("∇L", gradient), ("∇R", 2 * end)):
    tip = end + 1.6 * vector / np.linalg.norm(vector)
    ax.annotate(
        name, end, tip, ha="center", va="center", arrowprops={"arrowstyle": "<|-", "color": "black"}
    )
ax.plot(0, 0, "k+", markersize=10)
ax.plot(*start, "o", color="black")
ax.annotate("start", start.numpy() + 0.15)
ax.set(aspect="equal", xlabel="θ₁", ylabel="θ₂")
ax.grid(False)
plt.show()
