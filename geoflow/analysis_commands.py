"""What the subcommands of analysis do, each a function of the parsed arguments."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import xarray as xr
from rich.table import Table

import geoflow as gf
from geoflow import archive, experiments, plots
from geoflow.analysis import periodogram as periodograms
from geoflow.analysis import relaxation as relaxations
from geoflow.analysis import spectra
from geoflow.analysis.scalars import with_scores
from geoflow.report import report as write_report
from geoflow.terminal import DONE, console


def plot(args: argparse.Namespace) -> int:
    """Write the figures of a walk."""
    with gf.open_trajectory(args.file) as ds:
        paths = plots.save_figures(ds, args.out, Path(args.file).stem)
    for path in paths:
        print(path)
    return DONE


def spectrum(args: argparse.Namespace) -> int:
    """Compute curvature spectra at snapshots of a walk of an experiment."""
    if args.out:
        archive.check_target(args.out, overwrite=args.force)
    with gf.open_trajectory(args.file) as ds:
        found = spectra.along(
            ds,
            experiments.rebuild(ds.attrs, device=args.device).flow,
            snapshots=args.snapshots,
            tensors=args.tensors,
            k=args.eigenvalues,
            n_probes=args.probes,
            n_steps=args.steps,
            max_products=args.max_products,
            seed=args.seed,
            progress=not args.quiet,
        )
    if args.out:
        archive.save_dataset(found, args.out, overwrite=args.force)
    table = Table("time", "operator", "largest", "smallest", "trace", "overlap", "curvature")
    for row in found["snapshot"].values:
        for operator in found["operator"].values:
            cell = found.isel(snapshot=row).sel(operator=operator)
            table.add_row(
                f"{float(cell['snapshot_time']):.4g}",
                str(operator),
                f"{float(cell['largest_eigenvalue'][0]):.5g}",
                f"{float(cell['smallest_eigenvalue'][0]):.4g}",
                f"{float(cell['trace']):.5g} ± {float(cell['trace_error']):.3g}",
                f"{float(cell['velocity_overlap']):.3g}",
                f"{float(cell['normal_curvature']):.4g}",
            )
    console().print(table)
    if args.out and not args.quiet:
        print(f"wrote {args.out}", file=sys.stderr)
    return DONE


def periodogram(args: argparse.Namespace) -> int:
    """Power spectra of scalars of a walk, with significance against red noise."""
    if args.out:
        archive.check_target(args.out, overwrite=args.force)
    with gf.open_trajectory(args.file) as ds:
        found = periodograms.along(
            ds,
            with_scores(ds, args.scalar or periodograms.SCALARS),
            against=args.against,
            detrend=args.detrend,
            max_frequency=args.max_frequency,
            n_simulations=args.simulations,
            seed=args.seed,
        )
    table = Table("scalar", "peak at", "cycles", "power", "p", "red noise: τ")
    for name in found["scalar"].values:
        one = found.sel(scalar=name)
        peak = float(one["peak_frequency"])
        table.add_row(
            str(name),
            f"{peak:.4g}",
            f"{peak / found.attrs['resolution']:.3g}",
            f"{float(one['peak_power']):.3g}",
            f"{float(one['p_value']):.3g}",
            f"{float(one['time_constant']):.3g}",
        )
    console().print(table)
    _keep(found, args)
    return DONE


def relaxation(args: argparse.Namespace) -> int:
    """Fit rates to the slow end of a walk, beside the smallest eigenvalues of A."""
    if args.out:
        archive.check_target(args.out, overwrite=args.force)
    with gf.open_trajectory(args.file) as ds:
        curvature = None
        if args.eigenvalues:
            curvature = experiments.rebuild(ds.attrs, device=args.device).flow
        found = relaxations.along(
            ds,
            scalars=with_scores(ds, args.scalar or relaxations.SCALARS),
            start=args.start,
            n_terms=args.terms,
            curvature=curvature,
            seed=args.seed,
        )
    table = Table("scalar", "rate", "95% interval", "later half", "predicted", "verdict")
    for name in found["scalar"].values:
        for term in found["term"].values:
            one = found.sel(scalar=name, term=term)
            first = term == 1
            table.add_row(
                str(name) if first else "",
                _or_dash(one["rate"]),
                f"{_or_dash(one['rate_low'])} to {_or_dash(one['rate_high'])}",
                _or_dash(one["late_rate"]) if first else "",
                _or_dash(one["predicted_rate"]) if first else "",
                one["verdict"].item() if first else "",
            )
    out = console()
    out.print(table)
    window = f"{found.sizes['sample']} samples from t = {found.attrs['start']:.4g}"
    eigenvalues = ", ".join(f"{v:.4g}" for v in found["smallest_eigenvalue"].values)
    out.print(f"{window} to {float(found['time'][-1]):.4g}, {found.attrs['final_angle']:.4g}°")
    if args.eigenvalues:
        out.print(f"smallest eigenvalues of A at the end: {eigenvalues}")
        out.print(f"rate at which the recorded velocity falls: {float(found['velocity_rate']):.4g}")
    _keep(found, args)
    return DONE


def _or_dash(value: xr.DataArray) -> str:
    """Write a number, or a dash where there is none."""
    return "–" if np.isnan(value) else f"{float(value):.4g}"


def _keep(found: xr.Dataset, args: argparse.Namespace) -> None:
    """Write a result of spectra in time and its figures, where asked for."""
    if args.out:
        archive.save_dataset(found, args.out, overwrite=args.force)
    stem = Path(args.file).stem
    figures = plots.save_spectra_in_time(found, args.figures, stem) if args.figures else []
    if not args.quiet:
        for path in [*([args.out] if args.out else []), *figures]:
            print(f"wrote {path}", file=sys.stderr)


def report(args: argparse.Namespace) -> int:
    """Write one self-contained page about walks and baselines."""
    write_report(args.files, args.out, overwrite=args.force)
    print(f"wrote {args.out}", file=sys.stderr)
    return DONE
