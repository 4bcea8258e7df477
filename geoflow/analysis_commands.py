"""What the subcommands of analysis do, each a function of the parsed arguments."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import xarray as xr
from rich.table import Table

import geoflow as gf
from geoflow import archive, experiments, plots
from geoflow.analysis import predictions, spectra, symmetry
from geoflow.report import report as write_report
from geoflow.terminal import DONE, console

PREDICTION_HEADS = {
    "output_distance": "RMS",
    "js_divergence": "JS / bit",
    "disagreement": "differing",
}


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
            operators=args.operators,
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
    if args.figures:
        plots.save_spectra(found, args.figures, Path(args.file).stem)
    _say_what_was_written(args)
    return DONE


def compare_predictions(args: argparse.Namespace) -> int:
    """Compare snapshots of a walk of an experiment by the predictions of their networks."""
    if args.out:
        archive.check_target(args.out, overwrite=args.force)
    with gf.open_trajectory(args.file) as ds:
        rebuilt = experiments.rebuild(ds.attrs, device=args.device)
        settings: dict[str, Any] = {
            "snapshots": args.snapshots,
            "classification": experiments.get(ds.attrs["experiment"]).classification,
            "progress": not args.quiet,
        }
        inputs = {"train": rebuilt.train.inputs, "test": rebuilt.test.inputs}
        found = predictions.along(ds, rebuilt.module, inputs, **settings)
        found = found.assign(symmetry.along(ds, rebuilt.module, **settings).data_vars)
    if args.out:
        archive.save_dataset(found, args.out, overwrite=args.force)
    from_first = found.isel(snapshot_other=0)
    columns = {
        f"{head}, {part}": from_first[name].sel(set=part)
        for name, head in PREDICTION_HEADS.items()
        if name in found
        for part in inputs
    }
    columns["‖Δθ‖"] = from_first["parameter_distance"]
    columns["to its nearest copy"] = from_first["symmetric_distance"]
    table = Table("time", *columns, title="from the first of these snapshots")
    for row, time in enumerate(found["snapshot_time"].values):
        table.add_row(f"{time:.4g}", *(f"{float(c[row]):.4g}" for c in columns.values()))
    console().print(table)
    for line in _symmetry_lines(found):
        print(line)
    if args.figures:
        plots.save_predictions(found, args.figures, Path(args.file).stem)
    _say_what_was_written(args)
    return DONE


def _symmetry_lines(found: xr.Dataset) -> list[str]:
    """What of the motion lies along symmetries, in words."""
    nearest, direct = found["symmetric_distance"], found["parameter_distance"]
    pairs = nearest.size - nearest.sizes["snapshot"]
    nearer = int((nearest < (1 - 1e-9) * direct).sum())
    lines = [
        f"nearer to a copy with permuted or flipped units than to the point itself: "
        f"{nearer // 2} of {pairs // 2} pairs (distance to the nearest copy: "
        f"{nearest.attrs['bound']})",
    ]
    texts = {
        "rescaling_fraction": "rescalings of units",
        "shift_fraction": "shifts of all logits",
    }
    for name, text in texts.items():
        if name in found and found.sizes["snapshot"] > 1:
            values = found[name].values[:-1]
            spread = f"{values.min():.3g} to {values.max():.3g}" if values.any() else "0, exactly"
            lines.append(f"part of the squared displacement along {text}: {spread}")
    return lines


def _say_what_was_written(args: argparse.Namespace) -> None:
    if args.quiet:
        return
    for path in (args.out, args.figures):
        if path:
            print(f"wrote {path}", file=sys.stderr)


def report(args: argparse.Namespace) -> int:
    """Write one self-contained page about walks and baselines."""
    write_report(args.files, args.out, overwrite=args.force)
    print(f"wrote {args.out}", file=sys.stderr)
    return DONE
