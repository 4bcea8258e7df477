"""
Your own network from a DataLoader
==================================

A convolutional network on the digits of scikit-learn, its data from a ``DataLoader``, there and back again.
"""

# %%
# Training as you always do it. A walk needs evaluation mode, a loader that does not shuffle, and a loss that is a sum
# over the examples of a batch.
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import geoflow as gf

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
labels = torch.tensor(digits.target)
train, test = TensorDataset(images[:400], labels[:400]), TensorDataset(images[400:], labels[400:])

network = nn.Sequential(
    nn.Conv2d(1, 12, 3),
    nn.Tanh(),
    nn.AvgPool2d(2),
    nn.Flatten(),
    nn.Linear(108, 32),
    nn.Tanh(),
    nn.Linear(32, 10),
)
optimizer = torch.optim.Adam(network.parameters(), 0.005)
for _ in range(40):
    for x, y in DataLoader(train, batch_size=50, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
network.eval()


# %%
# ``batch_loss`` says what one batch contributes: the sum of its losses, and how many they are.
def batch_loss(module, batch):
    x, y = batch
    return F.cross_entropy(module(x), y, reduction="sum"), len(y)


problem = gf.Problem.from_batches(network, batch_loss, DataLoader(train, batch_size=100))
unseen = gf.Problem.from_batches(network, batch_loss, DataLoader(test, batch_size=500))
flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
ds = gf.walk(
    flow,
    stop=gf.Stationary(degrees=170),
    observables={"test_loss": lambda theta: float(unseen.loss(theta))},
    max_evaluations=2_000,
)
print(f"{ds.status} after {int(ds.n_gradient[-1])} evaluations")

# sphinx_gallery_alt = "Angle, R, test loss and training loss of the walk of a convolutional network"
figure = gf.plots.overview(ds)

# %%
# The end of the walk goes back into the network, which is otherwise as it was.


def judge(name):
    with torch.no_grad():
        wrong = network(images[400:]).argmax(1) != labels[400:]
        loss = F.cross_entropy(network(images[:400]), labels[:400])
    print(
        f"{name}: training loss {float(loss):.6f}, {int(wrong.sum())} of {len(wrong)} test images wrong"
    )
    return wrong


before = judge("start")
gf.load_into(network, ds, snapshot=-1)
after = judge("end  ")

# %%
# Test images that the network got wrong at the start and gets right now:

# sphinx_gallery_alt = "Twelve handwritten digits of 8 by 8 pixels that the end of the walk recognises and the start does not"
plt.rcParams.update(gf.plots.STYLE)
figure, axes = plt.subplots(1, 12, figsize=(7, 0.9), layout="constrained")
for ax, index in zip(axes, torch.nonzero(before & ~after).flatten().tolist(), strict=False):
    ax.imshow(images[400 + index, 0], cmap="gray_r")
    ax.set_title(int(labels[400 + index]))
for ax in axes:
    ax.set(xticks=[], yticks=[])
plt.show()
