"""
Two losses kept at once
=======================

Where two losses are kept, the walk is on the intersection of their level sets: in three dimensions a curve.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import geoflow as gf


def ball(theta):
    return theta.square().sum()


def saddle(theta):
    return 1 + theta[2] - 0.6 * (theta[0] ** 2 - theta[1] ** 2)


def distance(theta):
    return (theta - torch.tensor([0.2, 2.0, 0.6], dtype=theta.dtype)).square().sum()


x, y = 0.9, -0.4
start = torch.tensor([x, y, 0.6 * (x**2 - y**2)], dtype=torch.float64)
problems = [gf.Problem.from_function(loss, start) for loss in (ball, saddle)]

# %%
# ``gf.LevelSet`` takes a list; everything else is as with one loss. The tolerance is relative to each level.
level_set = gf.LevelSet(problems, level_rtol=1e-9)
flow = gf.RegularizingFlow(level_set, distance)
ds = gf.walk(flow, rtol=1e-5)
print(
    f"{ds.status}; both losses stay within {float(abs(ds.constraint_residual).max()):.0e} of their levels"
)

# %%
# The sphere and the saddle are the two level sets. The walk goes along their intersection to the point nearest the star.

# sphinx_gallery_alt = "A sphere and a saddle surface in three dimensions; the walk follows the curve in which they meet"
plt.rcParams.update(gf.plots.STYLE)
figure = plt.figure(figsize=(6, 4.6))
ax = figure.add_subplot(projection="3d", computed_zorder=False)
radius = float(start.norm())
longitude, latitude = np.meshgrid(np.linspace(0, 2 * np.pi, 60), np.linspace(0, np.pi, 30))
sphere = radius * np.stack(
    [np.sin(latitude) * np.cos(longitude), np.sin(latitude) * np.sin(longitude), np.cos(latitude)]
)
ax.plot_surface(*sphere, color="#56B4E9", alpha=0.25, linewidth=0)
u, v = np.meshgrid(np.linspace(-1.5, 1.5, 60), np.linspace(-1.5, 1.5, 60))
ax.plot_surface(u, v, 0.6 * (u**2 - v**2), color="#E69F00", alpha=0.25, linewidth=0)
times = np.linspace(0, float(ds.time[-1]), 200)
ax.plot(*gf.interpolate(ds, times, flow).values.T, color="#D55E00", linewidth=3)
ax.plot(*ds.theta[[0]].values.T, "o", color="black")
ax.plot(0.2, 2.0, 0.6, "*", color="black", markersize=12)
ax.view_init(elev=28, azim=25)
ax.set(xlabel="θ₁", ylabel="θ₂", zlabel="θ₃")
ax.set_box_aspect((1, 1, 0.8), zoom=1.25)
plt.show()
