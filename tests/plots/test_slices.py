import os
from contextlib import nullcontext

import numpy as np
import pytest
from matplotlib.animation import FFMpegWriter
from PIL import Image, ImageChops

import geoflow as gf
import references
from geoflow import plots
from geoflow.analysis import landscape, planes
from geoflow.errors import ArchiveError, InputError
from geoflow.plots import animation, slices
from geoflow.plots.styles import new_figure


@pytest.fixture(scope="module")
def ds():
    flow = references.small_network()
    walk = gf.walk(flow, t_end=0.3, stop=None, max_snapshots=7)
    # Another function of the same points serves as a test loss.
    other = references.small_network(batch_size=24).problem
    return landscape.on_plane(walk, flow, points=9, observables={"test_loss": other})


def test_the_contour_of_the_level_is_where_the_loss_is_the_level(sphere):
    walk = gf.walk(sphere.flow, t_end=0.3, stop=None, max_snapshots=7)
    found = landscape.on_plane(walk, sphere.flow, points=101, margin=1.0)
    ax = plots.contours(found)
    # Filled contours, then the level.
    (vertices,) = ax.collections[-1].get_paths()
    # ½‖θ‖² = c on a circle; the same from the loss, a parabola, at three points of an axis.
    plane = planes.principal(walk)
    inside = plane.directions @ plane.origin
    radius = np.linalg.norm(vertices.vertices + inside, axis=1)
    off = plane.origin @ plane.origin - inside @ inside
    assert np.allclose(radius, np.sqrt(2 * sphere.flow.level_set.level - off), rtol=1e-3)


def test_the_walk_is_drawn_where_it_is_projected(ds):
    ax = plots.contours(ds, "test_loss")
    trace, start, end = ax.lines
    assert np.array_equal(trace.get_xdata(), ds["walk_alpha"])
    assert np.array_equal(trace.get_ydata(), ds["walk_beta"])
    assert start.get_xdata()[0] == ds["walk_alpha"][0]
    assert end.get_ydata()[0] == ds["walk_beta"][-1]
    assert ax.get_aspect() == 1
    assert not plots.contours(ds, walk=False).lines
    ax = slices.off_plane(ds)
    assert np.array_equal(ax.lines[0].get_ydata(), ds["off_plane_distance"])
    ax = plots.projections(ds)
    assert np.array_equal(ax.lines[1].get_ydata(), ds["projected_loss"])
    assert len(ax.lines) == 4


def test_the_colours_are_of_equal_ratio_and_hold_both_losses(ds):
    figure = plots.slice_figure(ds)
    assert "is the black contour" in figure.get_suptitle()
    filled = figure.subfigs[0].axes[0].collections[0]
    ratios = filled.levels[1:] / filled.levels[:-1]
    assert np.allclose(ratios, ratios[0])
    values = np.stack([ds["loss"], ds["test_loss"]])
    assert filled.levels[0] <= values.min()
    assert filled.levels[-1] >= values.max()


def test_a_level_off_the_grid_and_values_that_are_none_are_drawn_all_the_same(ds):
    off = ds.assign_attrs(level=float(ds["loss"].max()) * 2)
    assert "at no point of this grid" in plots.slice_figure(off).get_suptitle()
    holes = ds["loss"].where(ds["alpha"] > 0, np.inf)
    plots.slice_figure(ds.assign(loss=holes)).canvas.draw()
    plots.slice_figure(ds.assign(loss=ds["loss"] - ds["loss"].mean())).canvas.draw()
    plots.slice_figure(ds.assign(loss=0 * ds["loss"] + 1).drop_vars("test_loss")).canvas.draw()
    nothing = ds.assign(loss=np.nan * ds["loss"]).drop_vars("test_loss")
    with pytest.raises(InputError, match="finite nowhere"):
        plots.slice_figure(nothing)


def test_figures_are_the_same_each_time(ds, tmp_path):
    for folder in ("a", "b"):
        plots.save_figures(ds, tmp_path / folder, "s")
    names = ["s-slice.pdf", "s-slice.png"]
    assert sorted(os.listdir(tmp_path / "a")) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_film_has_its_frames_and_is_the_same_each_time(ds, tmp_path):
    for name in ("a.gif", "b.gif"):
        plots.animate(ds, tmp_path / name, frames=5, fps=10)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 5
        assert film.info["duration"] == 100
        first = film.convert("RGB")
        film.seek(4)
        changed = ImageChops.difference(first, film.convert("RGB")).getbbox()
    assert changed is not None
    plots.animate(ds, tmp_path / "time.gif", frames=5, fps=10, pace="time")
    assert (tmp_path / "time.gif").read_bytes() != (tmp_path / "a.gif").read_bytes()


@pytest.mark.slow
def test_a_walk_cut_in_another_order_is_drawn_the_same(ds, tmp_path):
    turned = ds.isel(snapshot=slice(None, None, -1))
    for draw in (plots.slice_figure, slices.off_plane, slices.projections):
        one, other = draw(ds), draw(turned)
        axes = [(part.axes if draw is plots.slice_figure else [part]) for part in (one, other)]
        for a, b in zip(*axes, strict=True):
            for x, y in zip(a.lines, b.lines, strict=True):
                assert np.array_equal(x.get_xydata(), y.get_xydata())
    for name, part in (("a.gif", ds), ("b.gif", turned)):
        plots.animate(part, tmp_path / name, frames=5, fps=10)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


@pytest.mark.parametrize("fps", [7.0, 20.0, 30.0, 45.0, 60.0, 100.0])
def test_a_gif_has_the_rate_asked_for_on_the_whole(ds, tmp_path, monkeypatch, fps):
    monkeypatch.setattr(animation, "_film", blank_film)
    path = tmp_path / "a.gif"
    with pytest.warns(UserWarning, match="many viewers") if fps > 50 else nullcontext():
        plots.animate(ds, path, frames=31, fps=fps)
    durations = []
    with Image.open(path) as film:
        assert film.n_frames == 31
        for frame in range(31):
            film.seek(frame)
            durations.append(film.info["duration"])
    assert abs(sum(durations) - 31_000 / fps) <= 5
    assert all(abs(d - 1000 / fps) < 10 and d >= 10 for d in durations)


def blank_film(ds, writer, path, frames, *rest):
    """Frames that differ in a small figure: what Pillow does with durations is the same."""
    figure = new_figure(0.5, 0.5)
    writer.setup(figure, str(path), 50)
    for frame in range(frames):
        figure.set_facecolor((frame / frames, 0, 0))
        writer.grab_frame()
    writer.finish()


def test_more_frames_than_there_is_room_or_time_for_are_refused(ds, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="frames=100,000; use at most"):
        plots.animate(ds, tmp_path / "a.gif", frames=100_000)
    monkeypatch.setattr("geoflow.system.memory.available_memory", lambda device: 2**30)
    with pytest.raises(InputError, match=r"frames=1,000 of a GIF need 2.0 GiB .* name a .mp4"):
        plots.animate(ds, tmp_path / "a.gif", frames=1000)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(not FFMpegWriter.isAvailable(), reason="there is no ffmpeg")
def test_mp4_is_the_same_each_time(ds, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        plots.animate(ds, tmp_path / name, frames=4)
    content = (tmp_path / "a.mp4").read_bytes()
    assert content == (tmp_path / "b.mp4").read_bytes()
    assert content[4:8] == b"ftyp"


def test_without_ffmpeg_mp4_says_what_to_do(ds, tmp_path, monkeypatch):
    monkeypatch.setattr(FFMpegWriter, "isAvailable", lambda: False)
    with pytest.raises(InputError, match="apt-get install ffmpeg"):
        plots.animate(ds, tmp_path / "a.mp4")
    assert os.listdir(tmp_path) == []


def test_a_film_that_fails_leaves_what_was_there(ds, tmp_path, monkeypatch):
    path = tmp_path / "a.gif"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists"):
        plots.animate(ds, path)

    def full(self, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.animation.PillowWriter.grab_frame", full)
    with pytest.raises(ArchiveError, match="No space left"):
        plots.animate(ds, path, frames=2, overwrite=True)
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["a.gif"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 1}, "frames=1"),
        ({"fps": 0}, "fps=0"),
        ({"pace": "step"}, "pace='step'"),
    ],
)
def test_bad_input(ds, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        plots.animate(ds, tmp_path / "a.gif", **arguments)
    with pytest.raises(InputError, match=r"must end in \.gif or \.mp4"):
        plots.animate(ds, tmp_path / "a.avi")
    with pytest.raises(InputError, match="not on the plane"):
        plots.contours(ds, "walk_loss")
    for draw in (plots.slice_figure, slices.off_plane, plots.projections, plots.contours):
        with pytest.raises(InputError, match="is not a slice"):
            draw(ds.assign_attrs(kind="pca"))
    without = ds.drop_vars("loss")
    for draw in (plots.slice_figure, lambda one: plots.animate(one, tmp_path / "a.gif")):
        with pytest.raises(InputError, match="ds has no 'loss'; give what geoflow slice made"):
            draw(without)
