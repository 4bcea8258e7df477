import numpy as np
import pytest

from geoflow.analysis import blocks, fit_pca
from geoflow.errors import InputError


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    stretch = np.array([5.0, 3.0, 2.0, 1.0, 0.5])
    plane = np.linalg.qr(rng.normal(size=(40, 5)))[0].T
    all_points = rng.normal(size=(30, 5)) * stretch @ plane + rng.normal(size=40)
    return [all_points[:18], all_points[18:]]


@pytest.mark.parametrize("standardise", [False, True])
def test_it_is_scikit_learns_pca(points, standardise, monkeypatch):
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8 * 30 * 7)
    together = np.concatenate(points)
    fitted = fit_pca(points, 4, standardise=standardise)
    scaled = StandardScaler().fit_transform(together) if standardise else together
    reference = PCA(4, svd_solver="full").fit(scaled)
    signs = np.sign((fitted.components * reference.components_).sum(axis=1))
    assert np.allclose(fitted.components * signs[:, None], reference.components_, atol=1e-10)
    assert np.allclose(fitted.transform(together) * signs, reference.transform(scaled))
    assert np.allclose(fitted.explained_variance, reference.explained_variance_)
    assert np.allclose(fitted.explained_variance_ratio, reference.explained_variance_ratio_)


def test_five_dimensions_are_found_and_nothing_is_left_over(points):
    fitted = fit_pca(points, 5)
    assert np.allclose(fitted.components @ fitted.components.T, np.eye(5), atol=1e-12)
    assert fitted.explained_variance_ratio.sum() == pytest.approx(1)
    assert np.allclose(fitted.distance(points[0]), 0, atol=1e-10)
    off = fitted.distance(points[0], 3)
    expected = np.linalg.norm(fitted.transform(points[0])[:, 3:], axis=1)
    assert np.allclose(off, expected)
    with pytest.raises(InputError, match="span 5 dimensions"):
        fit_pca(points, 6)


def test_the_greatest_coordinate_is_positive(points):
    scores = fit_pca(points, 5).transform(np.concatenate(points))
    assert (scores[np.abs(scores).argmax(axis=0), range(5)] > 0).all()


def test_a_parameter_that_does_not_move_stays_at_zero(points):
    still = [np.column_stack([part, np.full(len(part), 0.1)]) for part in points]
    fitted = fit_pca(still, 3, standardise=True)
    assert np.abs(fitted.components[:, -1]).max() < 1e-12
    assert np.allclose(
        fitted.transform(still[0]), fit_pca(points, 3, standardise=True).transform(points[0])
    )


@pytest.mark.parametrize(
    ("change", "n", "message"),
    [
        (lambda p: [], 2, "give arrays"),
        (lambda p: [p[0], p[1][:, :3]], 2, "the same P"),
        (lambda p: p, 0, "n_components=0"),
        (lambda p: p, 30, "1 to 29"),
        (lambda p: [p[0], np.full_like(p[1], np.nan)], 2, "non-finite"),
    ],
)
def test_bad_input(points, change, n, message):
    with pytest.raises(InputError, match=message):
        fit_pca(change(points), n)
