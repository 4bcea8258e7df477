"""Names and shapes of parameter tensors, as problems and files have them."""

import numpy as np

import geoflow as gf
import references
from geoflow.trajectories.layout import layout_in, layout_of


def test_files_have_the_layout_of_their_problem(tmp_path):
    flow = references.small_network()
    layout = layout_of(flow.problem)
    assert layout[:2] == [["0.weight", [8, 3]], ["0.bias", [8]]]
    assert sum(int(np.prod(shape)) for _, shape in layout) == flow.problem.n_parameters
    gf.walk(flow, stop=gf.Stationary(100.0), archive=tmp_path / "walk.nc").close()
    with gf.open_trajectory(tmp_path / "walk.nc") as ds:
        assert layout_in(ds) == layout
        assert ds["tensor_offset"].values.tolist() == [t.offset for t in flow.problem.tensors]
    path = gf.regularization_path(flow, [flow.level_set.level], 100.0)
    assert layout_in(path) == layout
