"""Lanczos' process beside the matrix that it is of."""

import itertools

import numpy as np
import pytest
import torch

from geoflow.manifold.lanczos import lanczos


@pytest.mark.parametrize("scale", [1.0, 1e-170, 1e150])
def test_its_vectors_stay_orthonormal_and_its_numbers_are_their_products(scale):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64, generator=generator))[0]
    # Outliers converge first: without a second pass they come back.
    values = torch.linspace(1, 2, 60, dtype=torch.float64)
    values[-3:] = torch.tensor([1e3, 1e4, 1e6])
    matrix = scale * (vectors * values) @ vectors.T
    start = torch.randn(60, dtype=torch.float64, generator=generator)
    steps = list(itertools.islice(lanczos(lambda v: matrix @ v, start), 40))
    alpha, beta, bases = zip(*steps, strict=True)
    basis = bases[-1]
    units = torch.stack([basis[i] for i in range(len(basis))])
    assert len(basis) == 40
    assert float((units @ units.T - torch.eye(40)).abs().max()) < 1e-13
    expected = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    found = (units @ matrix @ units.T).numpy()
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-8)
    np.testing.assert_allclose(units[0], start / start.norm(), rtol=1e-15)
