"""What the subcommands of analysis do, each a function of the parsed arguments."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.table import Table

import geoflow as gf
from geoflow import archive, experiments, plots
from geoflow.analysis import spectra
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
            archive=args.out,
            overwrite=args.force,
            progress=not args.quiet,
        )
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


def report(args: argparse.Namespace) -> int:
    """Write one self-contained page about walks and baselines."""
    write_report(args.files, args.out, overwrite=args.force)
    print(f"wrote {args.out}", file=sys.stderr)
    return DONE
