"""Constraints whose normals are almost the same cut out the same level set as others that are not.

On |y| and y₀ + 2y₁ kept, as |y|² and |y|² + ε(y₀ + 2y₁) say too, whatever ε is.
"""

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.manifold.normals import normal_space

START = torch.tensor([0.7, -0.4, 0.9, 0.3, -0.8], dtype=torch.float64)


def walk(epsilon):
    losses = (
        lambda y: y @ y + 1,
        lambda y: y @ y + epsilon * (y[0] + 2 * y[1]) + 2,
    )
    level_set = gf.LevelSet(
        [gf.Problem.from_function(loss, START) for loss in losses], level_rtol=1e-12
    )
    flow = gf.RegularizingFlow(level_set, lambda y: y[0] + 2 * y[3] * y[4] + y[2] ** 2 - y[1])
    return gf.walk(flow, "bdf", t_end=0.6, stop=None, max_evaluations=2000)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-4, 1e-6])
def test_bdf_takes_the_same_steps_however_nearly_dependent_constraints_are(epsilon):
    plain, found = walk(1.0), walk(epsilon)
    assert found.status == "t_end"
    assert found.sizes["step"] == pytest.approx(plain.sizes["step"], abs=2)
    assert int(found["n_rejected"][-1]) == int(plain["n_rejected"][-1]) == 0
    assert int(found["n_gradient"][-1]) == pytest.approx(int(plain["n_gradient"][-1]), abs=4)
    assert np.allclose(found["theta"][-1], plain["theta"][-1], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_basis_of_normals_is_orthonormal_and_holds_newtons_step(dtype):
    generator = torch.Generator().manual_seed(0)
    # More columns than are taken at a time.
    rows = torch.randn(3, 70_000, generator=generator, dtype=dtype)
    close, atol = (3e-2, 1e-2) if dtype == torch.float32 else (1e-5, 1e-3)
    rows[1] = rows[0] + close * rows[1]
    residuals = np.array([0.3, -0.7, 0.2])
    factors = torch.tensor([1.0, 1e-25, 1e-30], dtype=dtype)
    if dtype == torch.float64:
        factors = factors**8
    for scales in (torch.ones_like(factors), factors):
        space = normal_space(rows * scales[:, None])
        basis = torch.empty_like(rows, dtype=torch.float32)
        space.write_basis(basis)
        assert torch.allclose(basis @ basis.T, torch.eye(3), atol=atol)
        scaled = residuals * scales.numpy()
        step = space.step(scaled).to(torch.float32)
        along = torch.from_numpy(space.along_basis(scaled)).to(basis)
        assert torch.allclose(basis.T @ along, step, atol=2 * atol * float(step.abs().max()))


def test_the_basis_of_one_normal_is_that_over_its_length():
    g = torch.tensor([3.0, 4.0], dtype=torch.float64)
    basis = torch.empty(1, 2, dtype=torch.float32)
    normal_space(g).write_basis(basis)
    assert torch.equal(basis, torch.tensor([[0.6, 0.8]]))
    assert normal_space(g).along_basis(np.array([10.0])) == [2.0]
