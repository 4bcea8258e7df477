import subprocess
import sys
from contextlib import nullcontext

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import geoflow as gf
from geoflow import cli
from geoflow.analysis import PCA, fit_pca
from geoflow.analysis.components import (
    blocks,
    brownian,
    null_models,
    path_components,
    pca,
    principal,
)
from geoflow.archive.netcdf import save_dataset
from geoflow.errors import ArchiveError, InputError, RankError
from references import small_network


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two walks of one small network, on two of its level sets."""
    folder = tmp_path_factory.mktemp("walks")
    problem = small_network().problem
    loss = float(problem.loss(problem.theta0))
    for seed in range(2):
        level_set = gf.LevelSet(problem, loss * (1 - 0.2 * seed))
        gf.walk(
            gf.RegularizingFlow(level_set, gf.regularizers.squared_norm),
            stop=gf.Stationary(150.0),
            max_snapshots=12 + seed,
            provenance={"experiment": "small", "seed": seed},
            archive=folder / f"{seed}.nc",
        ).close()
    return sorted(folder.glob("*.nc"))


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    stretch = np.array([5.0, 3.0, 2.0, 1.0, 0.5])
    plane = np.linalg.qr(rng.normal(size=(40, 5)))[0].T
    all_points = rng.normal(size=(30, 5)) * stretch @ plane + rng.normal(size=40)
    return [all_points[:18], all_points[18:]]


@pytest.mark.parametrize("scale", [1e-140, 1e-100, 1e-85, 1e100, 1e140])
def test_ratios_are_those_of_points_of_another_size(scale):
    points = np.random.default_rng(0).standard_normal((9, 30)).cumsum(axis=0)
    ratio = gf.analysis.fit_pca([points], 3).explained_variance_ratio
    found = gf.analysis.fit_pca([points * scale], 3)
    assert np.allclose(found.explained_variance_ratio, ratio, rtol=1e-12)
    scores = points[:, :2] - points[:, :2].mean(axis=0)
    content = path_components.cosine_content(scores)
    assert np.allclose(path_components.cosine_content(scores * scale), content, rtol=1e-12)
    values = np.array([[1.0, 2.0, 3.0]])
    # 36/14 directions.
    assert path_components.participation_ratio(values * scale * scale)[0] == pytest.approx(18 / 7)


def test_points_whose_squares_no_float_holds_are_refused():
    points = np.random.default_rng(0).standard_normal((9, 30)).cumsum(axis=0)
    for scale, what in ((1e-160, "underflow"), (1e160, "overflow")):
        with pytest.raises(gf.InputError, match=f"squares of their distances {what} float64"):
            gf.analysis.fit_pca([points * scale], 3)
        with pytest.raises(gf.InputError, match=f"squares of their distances {what} float64"):
            null_models.compare(points * scale, n_components=3, n_simulations=19)


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


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("p", [1, 4, 29, 30, 31])
def test_few_parameters_give_what_the_gram_matrix_would(p, standardise):
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    points = np.random.default_rng(p).standard_normal((30, p)).cumsum(axis=0) + 3
    scaled = StandardScaler().fit_transform(points) if standardise else points
    found, scores, _ = principal.fit([points[:11], points[11:]], 1, standardise, False)
    reference = PCA(svd_solver="full").fit(scaled)
    n_scores = min(29, p)
    assert scores.shape == (30, n_scores)
    squares = (scores**2).sum(axis=0) / 29
    assert np.allclose(squares, reference.explained_variance_[:n_scores], rtol=1e-9)
    assert np.allclose(np.abs(scores), np.abs(reference.transform(scaled))[:, :n_scores], atol=1e-7)
    assert (scores[np.abs(scores).argmax(axis=0), range(n_scores)] > 0).all()
    assert np.allclose(scores[:, :1], found.transform(points))


def test_of_few_parameters_no_matrix_of_all_points_is_made(monkeypatch):
    made = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda a: made.append(a.shape) or eigh(a))
    fit_pca([np.random.default_rng(0).standard_normal((500, 5)).cumsum(axis=0)])
    assert made == [(5, 5)]


def test_null_models_that_would_take_too_long_are_refused_before_the_components(monkeypatch):
    ds = gf.walk(small_network(), t_end=0.5, max_snapshots=5)
    monkeypatch.setattr(pca, "fit", lambda *_: pytest.fail("the points are looked at"))
    monkeypatch.setattr(brownian, "OPERATIONS", 10_000)
    n = ds.sizes["snapshot"]
    with pytest.raises(InputError, match=rf"n_simulations=999 of {n} points takes"):
        pca.along([ds], null_models=True)


def test_points_that_are_all_the_same_are_called_so():
    ds = gf.walk(small_network(), t_end=0.5, max_snapshots=5)
    still = ds.assign(theta=ds["theta"] * 0 + 1)
    for given in (still, [still, still]):
        with pytest.raises(RankError, match=r"^points are all the same"):
            pca.along(given)


def test_a_title_names_ten_seeds_at_the_most():
    ds = gf.walk(small_network(), t_end=0.5, max_snapshots=5)
    many = [ds.assign_attrs(seed=seed, experiment="small") for seed in range(11)]
    assert pca.along(many[:10], 1).title.endswith("small, seeds 0, 1, 2, 3, 4, 5, 6, 7, 8, 9")
    assert pca.along(many, 1).title.endswith("small, 11 walks")


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


@pytest.mark.parametrize("standardise", [False, True])
def test_scores_of_walks_are_scikit_learns(files, standardise):
    from sklearn.decomposition import PCA as Reference
    from sklearn.preprocessing import StandardScaler

    thetas = []
    for path in files:
        with gf.open_trajectory(path) as ds:
            thetas.append(ds["theta"].values)
    together = np.concatenate(thetas)
    scaled = StandardScaler().fit_transform(together) if standardise else together
    reference = Reference(4, svd_solver="full").fit(scaled)
    found = pca.along(files, 4, standardise=standardise)
    expected = reference.transform(scaled)
    signs = np.sign((found["scores"].values * expected).sum(axis=0))
    error = np.abs(found["scores"].values * signs - expected).max()
    assert error < 1e-8 * np.abs(expected).max()
    assert np.allclose(found["explained_variance"], reference.explained_variance_, rtol=1e-8)
    every = Reference(svd_solver="full").fit(scaled).explained_variance_ratio_
    assert float(found["participation_ratio"]) == pytest.approx(1 / (every**2).sum(), rel=1e-8)
    enough = [int((np.cumsum(every) < share).sum()) + 1 for share in (0.9, 0.99, 0.999)]
    assert found["n_directions"].values.tolist() == enough


def test_points_know_their_walk_and_the_distance_from_what_is_drawn(files):
    found = pca.along(files, 5)
    fitted = PCA.of(found)
    start = 0
    for index, path in enumerate(files):
        with gf.open_trajectory(path) as ds:
            ds.load()
        n = ds.sizes["snapshot"]
        own = found.isel(point=slice(start, start + n))
        start += n
        assert set(own["walk_index"].values) == {index}
        assert set(own["seed"].values) == {ds.attrs["seed"]}
        for name in ("snapshot_time", "snapshot_step"):
            assert np.array_equal(own[name], ds[name])
        assert np.array_equal(own["arc_length"], ds["arc_length"][ds["snapshot_step"].values])
        assert np.allclose(own["scores"], fitted.transform(ds["theta"].values), atol=1e-9)
        for plane in (2, 3):
            distance = fitted.distance(ds["theta"].values, plane)
            assert np.allclose(own["off_plane_distance"].sel(plane=plane), distance, atol=1e-7)
        scores = own["scores"].values
        content = path_components.cosine_content(scores - scores.mean(axis=0))
        assert np.allclose(found["cosine_content"].sel(walk=index), content)
    assert start == found.sizes["point"]


def test_the_dataset_explains_itself_and_is_kept(files, tmp_path):
    found = pca.along(files, 3)
    assert found.attrs["kind"] == "pca"
    assert found.attrs["walk_seed"] == [0, 1]
    assert all({"units", "long_name"} <= set(v.attrs) for v in found.variables.values())
    save_dataset(found, tmp_path / "pca.nc")
    with xr.open_dataset(tmp_path / "pca.nc") as again:
        xr.testing.assert_allclose(again.load(), found, rtol=0, atol=0)
    with gf.open_trajectory(files[0]) as first, gf.open_trajectory(files[1]) as second:
        xr.testing.assert_identical(found, pca.along([first, second], 3))
        single = pca.along(first, 3)
        lazy = pca.along(first.chunk(snapshot=5, parameter=100), 3)
    xr.testing.assert_identical(single, lazy)
    assert single.attrs["walk_seed"] == 0


def test_null_models_stand_beside_each_walk(files):
    found = pca.along(files, 4, null_models=True, n_simulations=19, seed=3)
    for index, path in enumerate(files):
        with gf.open_trajectory(path) as ds:
            expected = null_models.compare(
                ds["theta"].values,
                ds["snapshot_time"].values,
                n_components=4,
                n_simulations=19,
                seed=3,
            )
        xr.testing.assert_equal(pca.null_models_of(found, index), expected)
    with pytest.raises(InputError, match="walk=2: ds holds no points of it; use walk=0"):
        pca.null_models_of(found, 2)
    with pytest.raises(InputError, match="null_models=True"):
        pca.null_models_of(pca.along(files, 4))
    with pytest.raises(InputError, match="leave one of the two out"):
        pca.along(files, null_models=True, standardise=True)
    with pytest.raises(InputError, match="seed=-1"):
        pca.along(files, null_models=True, seed=-1)


class Recorded:
    """Points in chunks, that say what was read of them."""

    ndim, dtype = 2, np.dtype(float)

    def __init__(self, values, chunk):
        self.values, self.shape = values, values.shape
        self.encoding = {"chunksizes": (1, chunk)}
        self.read = []

    def __len__(self):
        return len(self.values)

    def __getitem__(self, key):
        self.read.append(key[1])
        return self.values[key]


@pytest.mark.parametrize("columns", [1000, 30, 10])
def test_a_chunk_is_read_once_in_each_pass(columns, monkeypatch):
    values = np.random.default_rng(0).normal(size=(9, 95)).cumsum(axis=0)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8 * 9 * columns)
    points = Recorded(values, 10)
    fitted = fit_pca([points], 3)
    assert np.allclose(fitted.components, fit_pca([values], 3).components)
    passes = [p for p in points.read if p.start == 0]
    assert len(passes) == 2
    assert len(points.read) == 2 * -(-95 // columns)
    assert all(p.start % 10 == 0 and (p.stop % 10 == 0 or p.stop == 95) for p in points.read)
    assert sum(p.stop - p.start for p in points.read) == 2 * 95


def test_chunks_too_wide_for_a_block_are_divided(monkeypatch):
    values = np.random.default_rng(0).normal(size=(9, 95)).cumsum(axis=0)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8 * 9 * 4)
    monkeypatch.setattr(blocks, "LARGEST_BLOCK_BYTES", 8 * 9 * 8)
    points = Recorded(values, 10)
    assert np.allclose(fit_pca([points], 3).components, fit_pca([values], 3).components)
    assert max(p.stop - p.start for p in points.read) == 4
    assert sum(p.stop - p.start for p in points.read) == 2 * 95
    assert blocks.block_bytes([points]) == 8 * 9 * 4


@pytest.mark.slow
def test_what_does_not_fit_is_refused_before_anything_is_read(monkeypatch):
    points = da.from_array(np.broadcast_to(np.array(np.nan), (20, 10**7)), chunks=(20, 10**6))
    available = type("Memory", (), {"available": 2**20})
    monkeypatch.setattr("psutil.virtual_memory", lambda: available)
    message = r"n_components=6: 20 points of 10,000,000 parameters need 1.0 GiB.*0.0 GiB.*fewer"
    with pytest.raises(InputError, match=message):
        fit_pca([points])
    with pytest.raises(InputError, match="give fewer points"):
        null_models.compare(points)


@pytest.mark.parametrize(("n", "dimensions", "k"), [(4, 9, 3), (9, 2, 2), (9, 8, 6)])
def test_where_no_number_is_asked_for_there_are_as_many_as_the_points_span(n, dimensions, k):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(n, dimensions)) @ rng.normal(size=(dimensions, 50))
    fitted = fit_pca([values])
    assert fitted.components.shape == (k, 50)
    assert np.allclose(fitted.components, fit_pca([values], k).components, atol=1e-12)
    assert null_models.compare(values, n_simulations=9).sizes["component"] == min(6, n - 1)
    with pytest.raises(InputError, match=rf"n_components={k + 1}") if k < 6 else nullcontext():
        fit_pca([values], k + 1)
    with pytest.raises(RankError, match="span 0 dimensions"):
        fit_pca([np.ones((4, 3))])


def test_a_walk_of_few_snapshots_has_few_components():
    ds = gf.walk(small_network(), t_end=0.5, max_snapshots=5)
    n = ds.sizes["snapshot"]
    assert 2 < n < 7
    found = pca.along(ds, null_models=True, n_simulations=19)
    assert found.sizes["component"] == n - 1
    xr.testing.assert_identical(found, pca.along(ds, n - 1, null_models=True, n_simulations=19))
    with pytest.raises(InputError, match=rf"n_components=6: {n} points have 1 to {n - 1}"):
        pca.along(ds, 6)


def test_components_below_the_rounding_of_float32_are_told():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 3000)) + 1000 * rng.normal(size=3000)
    ds = gf.walk(small_network(), t_end=0.5, max_snapshots=5)
    few = plane[: ds.sizes["snapshot"], : ds.sizes["parameter"]]
    rounded = ds.assign(theta=ds["theta"].copy(data=few).astype(np.float32))
    found = pca.along(rounded, 3)
    floor, variance = float(found["variance_floor"]), found["explained_variance"].values
    assert variance[1] > 1e4 * floor
    assert 0.1 * floor < variance[2] < floor
    exact = pca.along(ds.assign(theta=ds["theta"].copy(data=few)), 2)
    assert float(exact["variance_floor"]) < 1e-4 * floor


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a, b: [], InputError, "at least one walk"),
        (lambda a, b: ["nowhere.nc"], ArchiveError, "nowhere.nc is not a file"),
        (lambda a, b: [a, b.assign(tensor_shape=b["tensor_shape"][::-1])], InputError, "shapes"),
        (
            lambda a, b: a.isel(snapshot=[0, 1]),
            InputError,
            "have one component; ask for fewer",
        ),
    ],
)
def test_bad_walks(files, change, error, message):
    with gf.open_trajectory(files[0]) as a, gf.open_trajectory(files[1]) as b:
        given = change(a, b)
        with pytest.raises(error, match=message):
            pca.along(given, 2)
    with pytest.raises(InputError, match=r"pca\.along"):
        PCA.of(xr.Dataset())


@pytest.mark.slow
def test_the_command(files, tmp_path, capsys):
    out = tmp_path / "out.nc"
    options = ["--components", "4", "--null-models", "--quiet"]
    wanted = ["--out", str(out), "--figures", str(tmp_path / "figures")]
    assert cli.main(["pca", str(files[0].parent), *options, *wanted]) == 0
    text = capsys.readouterr().out
    assert "participation ratio" in text
    assert "Brownian" in text or "brownian" in text
    with xr.open_dataset(out) as kept:
        expected = pca.along(files, 4, null_models=True)
        xr.testing.assert_allclose(kept.load(), expected)
    drawn = {path.name for path in (tmp_path / "figures").glob("*.png")}
    kinds = ("explained-variance", "pca-2d", "pca-3d", "null-models")
    assert drawn == {f"out-{kind}.png" for kind in kinds}
    before = out.read_bytes()
    assert cli.main(["pca", str(files[0]), *options, *wanted]) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert cli.main(["pca", str(files[0]), "--components", "99"]) == 2
    assert "n_components=99" in capsys.readouterr().err


MEMORY = """
import dask.array as da
from pathlib import Path
from geoflow.analysis import fit_pca

def memory(entry):
    return int(Path("/proc/self/status").read_text().split(f"{entry}:")[1].split()[0]) * 1024

before = memory("VmRSS")
points = da.random.default_rng(0).standard_normal((300, 1_000_000), chunks=(300, 16_384))
fitted = fit_pca([points], 6)
print(points.nbytes, memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_far_below_the_size_of_the_points():
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True
    )
    size, peak = map(int, done.stdout.split())
    assert size == 2_400_000_000
    assert peak < 800 * 2**20


def test_a_walk_too_short_for_null_models_is_refused_before_the_points_are_read(files, monkeypatch):
    monkeypatch.setattr(pca, "fit", None)
    with gf.open_trajectory(files[0]) as a, pytest.raises(InputError) as caught:
        pca.along(a.isel(snapshot=[0, 1]), 1, null_models=True)
    assert "has 2 snapshots, and it takes three; walk again with more" in str(caught.value)


def test_what_rounding_alone_moves_is_not_standardised():
    points = np.random.default_rng(0).standard_normal((8, 3))
    points[:, 2] = 0.1
    points[3, 2] = np.nextafter(0.1, 1)
    assert fit_pca([points], 2, standardise=True).scale[2] == 1


def test_standardised_points_may_be_of_any_size():
    points = np.random.default_rng(0).standard_normal((10, 20))
    one = fit_pca([points], standardise=True)
    for scale in (1e-300, 1e-160, 1e160, 1e300, 10.0 ** np.linspace(-300, 300, 20)):
        other = fit_pca([points * scale], standardise=True)
        assert np.allclose(other.explained_variance_ratio, one.explained_variance_ratio, rtol=1e-12)
        assert np.allclose(other.components, one.components, atol=1e-12)
        assert np.allclose(other.scale / scale, one.scale, rtol=1e-12)


def test_points_of_no_parameters_or_of_others_are_refused(points):
    for call in (
        lambda: fit_pca([np.ones((4, 0))]),
        lambda: null_models.compare(np.ones((4, 0))),
    ):
        with pytest.raises(InputError, match="points have no parameters; give arrays of shape"):
            call()
    fitted = fit_pca(points, 3)
    for function in (fitted.transform, fitted.distance):
        for other in (points[0][:, :5], points[0][0, :5], 1.0):
            with pytest.raises(InputError, match=r"points have the shape \(.*give.*P of 40"):
                function(other)
    # One point by itself is as it is among others.
    assert np.allclose(fitted.transform(points[0][0]), fitted.transform(points[0])[0])
    assert np.isclose(fitted.distance(points[0][0]), fitted.distance(points[0])[0])


def test_null_models_of_a_short_walk_beside_a_longer_one_are_its_own(files):
    few = {"n_simulations": 19, "seed": 3}
    with gf.open_trajectory(files[0]) as a, gf.open_trajectory(files[1]) as b:
        short = a.isel(snapshot=[0, 2, 5])
        found = pca.along([short, b], 4, null_models=True, **few)
        for index, (ds, k) in enumerate(((short, 2), (b, 4))):
            theta, times = ds["theta"].values, ds["snapshot_time"].values
            expected = null_models.compare(theta, times, n_components=k, **few)
            xr.testing.assert_equal(pca.null_models_of(found, index), expected)


@pytest.mark.parametrize(
    ("seeds", "called"),
    [
        ((1, 1), (", seed 1, walk 1", ", seed 1, walk 2")),
        ((1, 2), (", seed 1", ", seed 2")),
        ((-1, -1), (", walk 1", ", walk 2")),
        ((-1,), ("",)),
    ],
)
def test_null_models_of_several_walks_have_titles_of_their_own(files, seeds, called):
    with gf.open_trajectory(files[0]) as ds:
        walks = [ds.assign_attrs(seed=seed, experiment="small") for seed in seeds]
        found = pca.along(walks, 2, null_models=True, n_simulations=19)
        short = walks[-1].isel(snapshot=[0, 1])
        name = {1: "the walk of seed 1", 2: "the walk of seed 2", -1: f"walk {len(seeds)}"}
        with pytest.raises(InputError, match=rf"True: {name[seeds[-1]]} has 2 snapshots"):
            pca.along([*walks[:-1], short], 2, null_models=True)
    titles = [pca.null_models_of(found, i).attrs["title"] for i in range(len(seeds))]
    assert titles == [f"Principal components beside null models: small{name}" for name in called]
