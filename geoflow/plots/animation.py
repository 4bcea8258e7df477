"""A walk over its slice of the landscape, as a GIF or an MP4."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, PillowWriter

from geoflow.archive.parts import check_free
from geoflow.errors import InputError
from geoflow.plots.slices import HALO, WALK, check, colour_bar, surface, title
from geoflow.plots.styles import LABELS, SLIDE_INCHES, laid_out, new_figure, style
from geoflow.system import kinds, locks, translation
from geoflow.system.memory import check_memory
from geoflow.system.progress import progress_bar

ENDINGS = (".gif", ".mp4")
# Pixels of both directions must be even for H.264: 7.0 × 4.0 inches at 160 dots an inch.
DPI = 160
HEIGHT_INCHES = 4.0
# An hour's work or so.
MOST_FRAMES = 10_000

PACES = {
    "arc_length": ("snapshot_arc_length", LABELS["arc_length"]),
    "time": ("snapshot_time", LABELS["time"]),
}


class _GifWriter(PillowWriter):
    """Spreads the durations of frames, whole hundredths of a second in a GIF, to the mean asked."""

    _frames: list[Any]

    def finish(self) -> None:
        """Write the file."""
        ends = np.round(100 * np.arange(len(self._frames) + 1) / self.fps).astype(int)
        self._frames[0].save(
            self.outfile,
            save_all=True,
            append_images=self._frames[1:],
            duration=[10 * int(d) for d in np.diff(ends)],
            loop=0,
        )


def animate(
    ds: xr.Dataset,
    path: str | Path,
    *,
    frames: int = 100,
    fps: float = 20.0,
    pace: str = "arc_length",
    overwrite: bool = False,
    progress: bool = False,
) -> None:
    """Write a film of a walk over its slice, its distance from the plane below.

    Between snapshots the projection is interpolated linearly. The same input and the same software
    give the same file.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.landscape.slices.on_plane`.
    path : str or Path
        Ends in ``.gif``, or in ``.mp4``, for which ffmpeg must be there. Written whole or not at
        all.
    frames : int
        Of the film; evenly in arc length or in flow time, the first and the last snapshot shown.
    fps : float
        Frames a second. A GIF shows each for whole hundredths of a second: which of two, differs
        from frame to frame, so that the film as a whole has the rate asked for. A frame of a
        single hundredth, as beyond 50 a second, is shown for ten by many viewers.
    pace : str
        ``"arc_length"`` or ``"time"``.
    overwrite : bool
        Replace the file where it exists.
    progress : bool
        Show a bar on standard error, where that is a terminal or a notebook's.

    Raises
    ------
    InputError
        The dataset is no slice, an argument cannot be used, or ffmpeg is not there.
    ArchiveError
        Writing failed; ``path`` is as it was. A StorageError where another file got the name
        meanwhile, and the film is beside it.
    """
    ds = check(ds, "snapshot")
    kinds.check_dataset(ds, "loss", give="what geoflow slice made")
    path = kinds.as_path(path)
    frames, fps = kinds.as_whole(frames, "frames", 2), kinds.as_number(fps, "fps")
    writer = _writer(path, fps, pace)
    _check_cost(path, frames)
    check_free(path, overwrite=overwrite)
    kinds.check_switch(progress, "progress")
    whole = locks.replacing(path, ending=path.suffix, overwrite=overwrite)
    with translation.writing(path), whole as temporary, style():
        _film(ds, writer, temporary, frames, pace, progress)


def _writer(path: Path, fps: float, pace: str) -> AbstractMovieWriter:
    if path.suffix not in ENDINGS:
        raise InputError(f"{path}: its name must end in .gif or .mp4")
    if not 1 <= fps <= 100:
        raise InputError(f"fps={fps:g}; use 1 to 100 frames a second")
    kinds.check_choice(pace, PACES, "pace")
    if path.suffix == ".gif":
        if fps > 50:
            warnings.warn(
                f"fps={fps:g}: many viewers show frames of 1/100 s for ten times that; use 50 or "
                "less, or name a .mp4",
                stacklevel=3,
            )
        return _GifWriter(fps=fps)  # type: ignore[arg-type]
    if not FFMpegWriter.isAvailable():
        raise InputError(
            f"{path}: there is no ffmpeg here, which makes MP4 files; install it (on Debian: "
            "apt-get install ffmpeg), or name a .gif"
        )
    # Without the version of the software and the time in the file.
    plain = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-pix_fmt", "yuv420p"]
    return FFMpegWriter(fps=fps, codec="libx264", extra_args=plain)  # type: ignore[arg-type]


def _check_cost(path: Path, frames: int) -> None:
    """Refuse more frames than can be held, or drawn in hours."""
    if frames > MOST_FRAMES:
        raise InputError(f"frames={frames:,}; use at most {MOST_FRAMES:,}")
    if path.suffix == ".gif":
        # Of three bytes a pixel, all until the last is drawn; the palette's come one by one.
        size = round(SLIDE_INCHES * DPI) * round(HEIGHT_INCHES * DPI) * 3
        check_memory(frames * size, f"frames={frames:,} of a GIF", "use fewer, or name a .mp4")


def _film(
    ds: xr.Dataset,
    writer: AbstractMovieWriter,
    path: Path,
    frames: int,
    pace: str,
    progress: bool,
) -> None:
    along, label = PACES[pace]
    # A walk may be cut in any order; what is interpolated rises.
    ds = ds.sortby("snapshot_time")
    place = ds[along].values
    names = [n for n in ("loss", "test_loss") if n in ds]
    figure = new_figure(SLIDE_INCHES, HEIGHT_INCHES)
    parts: Any = figure.subfigures(2, 1, height_ratios=[2.2, 1])
    axes = np.atleast_1d(parts[0].subplots(1, len(names), sharex=True, sharey=True))
    movers = []
    for name, ax in zip(names, axes, strict=True):
        filled = surface(ds, name, ax, names)
        ax.set_aspect("auto")
        ax.set_title(LABELS[name])
        ax.label_outer()
        (trace,) = ax.plot([], [], color=WALK, linestyle="-", linewidth=1.6, path_effects=HALO)
        (head,) = ax.plot([], [], color=WALK, marker="o", markersize=6, markeredgecolor="#000000")
        movers.append((trace, head, ds["walk_alpha"].values, ds["walk_beta"].values))
    colour_bar(parts[0], filled, list(axes))
    below = parts[1].subplots()
    distance = ds["off_plane_distance"].values
    below.plot(place, distance, color="#BBBBBB", linestyle="-")
    (trace,) = below.plot([], [], color=WALK, linestyle="-")
    (head,) = below.plot([], [], color=WALK, marker="o", markersize=5, markeredgecolor="#000000")
    movers.append((trace, head, place, distance))
    below.set_xlabel(label)
    below.set_ylabel("distance\nfrom plane")
    below.set_ylim(bottom=0)
    figure.suptitle(title(ds), fontsize=8)
    # Laid out once: a layout for each frame would take most of the time, and could shift.
    laid_out(figure).canvas.draw()
    figure.set_layout_engine("none")
    writer.setup(figure, str(path), DPI)
    try:
        shown = np.linspace(place[0], place[-1], frames)
        for now in progress_bar(progress, shown, "film", unit="frame"):
            passed = place < now
            for trace, head, x, y in movers:
                here = np.interp(now, place, x), np.interp(now, place, y)
                trace.set_data([*x[passed], here[0]], [*y[passed], here[1]])
                head.set_data([here[0]], [here[1]])
            writer.grab_frame()
    except BaseException:
        # Ends ffmpeg, whose complaint about a film cut short says less than what cut it.
        with suppress(Exception):
            writer.finish()
        raise
    writer.finish()
