import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

import geoflow as gf
import references
from geoflow.analysis.networks import predictions
from geoflow.errors import InputError


@pytest.fixture(scope="module")
def walk():
    return gf.walk(references.small_network(), t_end=0.5, max_snapshots=5)


SETS = {"train": references.small_data()[0], "test": references.small_data(31, seed=7)[0]}


def evaluated(ds, inputs):
    problem = references.small_network().problem
    module = references.small_module()
    return np.stack(
        [
            torch.func.functional_call(module, problem.unflatten(torch.as_tensor(t)), (inputs,))
            .detach()
            .numpy()
            for t in ds["theta"].values
        ]
    )


def test_matrices_are_those_of_the_outputs(walk):
    found = predictions.along(walk, references.small_module(), SETS, classification=True)
    n = walk.sizes["snapshot"]
    assert found.attrs["kind"] == "predictions"
    assert dict(found.sizes) == {"set": 2, "snapshot": n, "snapshot_other": n}
    for name, inputs in SETS.items():
        outputs = evaluated(walk, inputs)
        p = np.exp(outputs) / np.exp(outputs).sum(axis=2, keepdims=True)
        here = found.sel(set=name)
        for i in range(n):
            for j in range(n):
                cell = here.isel(snapshot=i, snapshot_other=j)
                rms = math.sqrt(((outputs[i] - outputs[j]) ** 2).mean())
                assert float(cell["output_distance"]) == pytest.approx(rms, rel=1e-12)
                divergence = (jensenshannon(p[i], p[j], axis=1, base=2) ** 2).mean()
                assert float(cell["js_divergence"]) == pytest.approx(divergence, abs=1e-9)
                differ = (outputs[i].argmax(axis=1) != outputs[j].argmax(axis=1)).mean()
                assert float(cell["disagreement"]) == differ
    assert float(found["output_distance"].max()) > 0.1
    theta = walk["theta"].values
    distance = np.linalg.norm(theta[:, None] - theta, axis=2)
    assert np.allclose(found["parameter_distance"], distance, rtol=1e-13)
    arc = walk["arc_length"].values[walk["snapshot_step"].values]
    assert np.allclose(found["arc_length_difference"], np.abs(arc[:, None] - arc))
    # No chord is longer than its arc, but for what solver and recorder round.
    assert (found["parameter_distance"] <= found["arc_length_difference"] + 1e-3).all()
    assert (found["snapshot_time_other"].values == walk["snapshot_time"].values).all()


def test_batches_and_a_lazy_file_give_the_same(walk, tmp_path):
    module = references.small_module()
    whole = predictions.along(walk, module, SETS, classification=True)
    gf.save_trajectory(walk, tmp_path / "walk.nc")
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with gf.open_trajectory(tmp_path / "walk.nc") as ds:
        parts = predictions.along(ds, module, SETS, classification=True, batch_size=7)
    for name in predictions.VARIABLES:
        assert np.allclose(parts[name], whole[name], rtol=1e-12, atol=1e-15)
    assert module.training
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_snapshots_are_chosen_and_blocks_of_parameters_add_up(walk, monkeypatch):
    module = references.small_module()
    monkeypatch.setattr(predictions, "BLOCK", 7)
    found = predictions.along(walk, module, SETS, classification=False, snapshots=[-1, 0])
    assert "js_divergence" not in found
    theta = walk["theta"].values
    exact = np.linalg.norm(theta[-1] - theta[0])
    assert float(found["parameter_distance"][0, 1]) == pytest.approx(exact, rel=1e-13)
    assert found["snapshot_step"].values.tolist() == [int(walk["snapshot_step"][-1]), 0]


def test_divergence_of_certain_classes_is_one_bit_and_of_near_ones_a_quarter_of_fishers():
    far = torch.tensor([[[900.0, -900.0]], [[-900.0, 900.0]], [[900.0, -900.0]]]).double()
    found = predictions.between(far, classification=True)
    assert found["js_divergence"].tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert found["disagreement"].tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    far[2, 0, 1] = math.nan
    for matrix in predictions.between(far, classification=True).values():
        assert np.isnan(matrix[2, :2]).all()
        assert np.isnan(matrix[:2, 2]).all()
        assert matrix[0, 1] >= 1
    p = torch.tensor([0.2, 0.3, 0.5]).double()
    change = 1e-6 * torch.tensor([1.0, 1.0, -2.0]).double()
    near = torch.stack([p.log(), (p + change).log()])[:, None]
    fisher = float((change**2 / p).sum()) / 8 / math.log(2)
    divergence = predictions.between(near, classification=True)["js_divergence"][0, 1]
    assert divergence == pytest.approx(fisher, rel=1e-3, abs=0)


def test_bad_input(walk, monkeypatch):
    module = references.small_module()
    with pytest.raises(InputError, match="batch_size=0"):
        predictions.along(walk, module, SETS, classification=True, batch_size=0)
    with pytest.raises(InputError, match="9 is not there"):
        predictions.along(walk, module, SETS, classification=True, snapshots=[9])
    with pytest.raises(InputError, match="logits of two"):
        predictions.between(torch.zeros(2, 5, 1), classification=True)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1))
    with pytest.raises(InputError, match="choose fewer"):
        predictions.along(walk, module, SETS, classification=True)


@pytest.mark.parametrize("indices", [None, "01", b"01", [[0], [1]], range(10**12), [0, 99], [0, 0]])
def test_pairs_are_of_snapshots_that_are_there(walk, indices):
    for function in (predictions.parameter_distances, predictions.pair_coordinates):
        with pytest.raises(InputError, match=r"indices|snapshots="):
            function(walk, indices)
