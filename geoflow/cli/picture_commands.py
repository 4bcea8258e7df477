"""What the subcommands of pictures and pages do, each a function of the parsed arguments."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import xarray as xr

import geoflow as gf
from geoflow import baselines, plots
from geoflow.archive import netcdf
from geoflow.cli.terminal import DONE, say
from geoflow.errors import InputError
from geoflow.plots.styles import COLUMN_INCHES, SLIDE_INCHES
from geoflow.report.page import report as write_report
from geoflow.system import files, translation
from geoflow.system.messages import note
from geoflow.trajectories import path_schema

WIDTHS = {"column": COLUMN_INCHES, "slide": SLIDE_INCHES}


def plot(args: argparse.Namespace) -> int:
    """Write the figures of a walk, of a path, of a sweep's folder, or of an analysis."""
    width = WIDTHS[args.size]
    with ExitStack() as stack:
        ds = _with_single_values(stack.enter_context(_open(files.file_named(args.file))))
        baseline = None
        if args.baseline is not None:
            if not path_schema.is_path(ds):
                raise InputError("--baseline: only a path has trainings drawn beside it")
            baseline = stack.enter_context(
                baselines.open_weight_decay([files.file_named(p) for p in args.baseline])
            )
        stack.enter_context(translation.reading(args.file, "what can be drawn"))
        paths = plots.save_figures(ds, args.out, Path(args.file).stem, args.kind, width, baseline)
    for path in paths:
        say(path)
    return DONE


def _open(path: Path) -> xr.Dataset:
    """Open whatever geoflow has written."""
    if files.is_folder(path):
        return gf.open_sweep(path)
    try:
        return gf.open_trajectory(path)
    except gf.ArchiveError as error:
        try:
            return netcdf.open_analysis(path)
        except gf.ArchiveError:
            raise error from None


def _with_single_values(ds: xr.Dataset) -> xr.Dataset:
    """Leave out attributes that are lists: no figure is of one, and none compares with one."""
    single = {n: v for n, v in ds.attrs.items() if isinstance(v, str | int | float | np.number)}
    ds = ds.copy()
    ds.attrs = single
    return ds


def animate(args: argparse.Namespace) -> int:
    """Animate a walk over its slice."""
    with (
        netcdf.open_analysis(args.file, "slice") as ds,
        translation.reading(args.file, "what can be drawn"),
    ):
        plots.animate(
            _with_single_values(ds),
            args.out,
            frames=args.frames,
            fps=args.fps,
            pace=args.pace,
            overwrite=args.force,
            progress=not args.quiet,
        )
    if not args.quiet:
        note(f"wrote {args.out}")
    return DONE


def report(args: argparse.Namespace) -> int:
    """Write one self-contained page about walks, paths, comparisons and baselines."""
    write_report(args.files, args.out, overwrite=args.force)
    note(f"wrote {args.out}")
    return DONE
