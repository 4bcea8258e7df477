"""The paper's largest network, 685,450 parameters, in a process of its own."""

import subprocess
import sys

import pytest

WALK = """
import resource
import geoflow as gf

prepared = gf.experiments.get("cifar10_conv").prepare(0, data="synthetic", epochs=1)
flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
ds = gf.walk(flow, max_evaluations=8, max_snapshots=100)
assert ds.sizes["parameter"] == 685_450
assert ds.sizes["step"] > 1
assert float(abs(ds["level_residual"]).max()) <= 1e-6 * ds.attrs["level"]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_cifar10_conv_is_trained_and_walked_within_4_gib():
    done = subprocess.run([sys.executable, "-c", WALK], capture_output=True, text=True, check=True)
    # In KiB on Linux.
    assert int(done.stdout) < 4 * 2**20
