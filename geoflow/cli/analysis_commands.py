"""What the subcommands of analysis do, each a function of the parsed arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from rich.table import Table

import geoflow as gf
from geoflow import experiments, plots
from geoflow.analysis.components import pca
from geoflow.analysis.curvature import spectra
from geoflow.analysis.landscape import planes, slices
from geoflow.analysis.networks import predictions, symmetry
from geoflow.analysis.series import periodogram as periodograms
from geoflow.analysis.series import relaxation as relaxations
from geoflow.analysis.walked import check_walked
from geoflow.archive import netcdf, parts, pieces
from geoflow.archive.inputs import expand
from geoflow.cli.own_problem import rebuilt_walk
from geoflow.cli.results import shown_in_any_case, write
from geoflow.cli.terminal import DONE, or_dash, say, show, span
from geoflow.errors import InputError
from geoflow.experiments.prepared import check_seed
from geoflow.problems.parts import TensorSpec
from geoflow.system.messages import note
from geoflow.trajectories.names import walk_called

PREDICTION_HEADS = {
    "output_distance": "RMS",
    "js_divergence": "JS / bit",
    "disagreement": "differing",
}


def spectrum(args: argparse.Namespace) -> int:
    """Compute curvature spectra at snapshots of a walk of an experiment."""
    _check_ahead(args, pieces.check_free)
    with gf.open_trajectory(args.file) as ds:
        found = spectra.along(
            ds,
            rebuilt_walk(ds, args).flow,
            snapshots=args.snapshots,
            operators=args.operators,
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
    _say_written(args)
    with shown_in_any_case() as attempt:
        attempt(_draw, found, args)
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
        show(table)
    return DONE


def principal_components(args: argparse.Namespace) -> int:
    """Find the principal components of the snapshots of one walk, or of several together."""
    _check_ahead(args)
    paths = expand(args.files)
    found = pca.along(
        paths,
        args.components,
        standardise=args.standardise,
        null_models=args.null_models,
        seed=args.seed,
        progress=not args.quiet,
    )
    with shown_in_any_case() as attempt:
        attempt(_keep, found, args)
        attempt(_draw, found, args, paths[0])
        table = Table("component", "variance", "of all", "up to here", "cosine content", "")
        ratio = found["explained_variance_ratio"].values
        floor = float(found["variance_floor"])
        for i, variance in enumerate(found["explained_variance"].values):
            table.add_row(
                str(i + 1),
                f"{variance:.4g}",
                f"{100 * ratio[i]:.3g}%",
                f"{100 * ratio[: i + 1].sum():.5g}%",
                ", ".join(f"{c:.2f}" for c in found["cosine_content"].values[:, i]),
                "" if variance > floor else "rounding",
            )
        show(table)
        needed = ", ".join(
            f"{int(n)} for {100 * float(share):g}%"
            for share, n in zip(found["share"], found["n_directions"], strict=True)
        )
        show(
            f"{found.sizes['point']} points; participation ratio "
            f"{float(found['participation_ratio']):.3f}; components: {needed} of the variance"
        )
        if args.null_models:
            show(_null_model_table(found))
    return DONE


def _null_model_table(found: xr.Dataset) -> Table:
    table = Table("seed", "model", "PC 1", "PC 2", "cosine content", "part. ratio", "p")
    seeds = found["walk_seed"].values.tolist()
    for walk in range(len(seeds)):
        own = pca.null_models_of(found, walk)
        for model in own["model"].values:
            row = own.sel(model=model)
            shares = row["explained_variance_ratio"].values[:2]
            table.add_row(
                walk_called(seeds, walk).removeprefix("seed "),
                str(model).replace("_", " "),
                *(f"{100 * r:.3g}%" for r in shares),
                *[""] * (2 - len(shares)),
                f"{float(row['cosine_content'][0]):.2f}",
                f"{float(row['participation_ratio']):.3f}",
                f"{float(row['p_value']):.3g}" if model == "walk" else "",
            )
    return table


def slice_(args: argparse.Namespace) -> int:
    """Evaluate the loss on a plane through a walk of an experiment."""
    _check_ahead(args, pieces.check_free)
    with gf.open_trajectory(args.file) as ds:
        rebuilt = rebuilt_walk(ds, args)
        found = slices.on_plane(
            ds,
            rebuilt.flow,
            _plane(args, ds, rebuilt.flow.problem.tensors),
            points=args.points,
            margin=args.margin,
            observables=_observables(args.observables, rebuilt),
            batch_size=args.batch,
            archive=args.out,
            overwrite=args.force,
            progress=not args.quiet,
        )
    _say_written(args)
    with shown_in_any_case() as attempt:
        attempt(_draw, found, args)
        table = Table("", "least", "greatest", "at the walk", "at its projections")
        for name in (n for n in found.data_vars if found[n].dims == ("alpha", "beta")):
            ends = [span(found[f"{kind}_{name}"]) for kind in ("walk", "projected")]
            low, high = float(found[name].min()), float(found[name].max())
            table.add_row(str(name), f"{low:.4g}", f"{high:.4g}", *ends)
        show(table)
        off = found["off_plane_distance"]
        show(
            f"level {found.attrs['level']:.6g}; the walk is {span(off)} from the plane, over an "
            f"arc length of {float(found['snapshot_arc_length'][-1]):.4g}"
        )
    return DONE


def _plane(args: argparse.Namespace, ds: xr.Dataset, tensors: Sequence[TensorSpec]) -> planes.Plane:
    if args.through is not None and (args.filter_normalise or args.random):
        raise InputError(
            "--through: filter-normalised or random directions would not lead through the three "
            "snapshots; leave --filter-normalise and --random out"
        )
    if args.random:
        return planes.random(ds, tensors, seed=args.seed)
    if args.through is not None:
        return planes.through(ds, args.through)
    return planes.principal(ds, tensors if args.filter_normalise else None)


def _observables(names: Sequence[str] | None, rebuilt: experiments.RebuiltWalk) -> dict[str, Any]:
    if names is None:
        names = ["test_loss"] if "test_loss" in rebuilt.observables else []
    unknown = [name for name in names if name not in rebuilt.observables]
    if unknown:
        raise InputError(
            f"--observables: there is no {unknown[0]!r}; choose from "
            f"{', '.join(rebuilt.observables) or 'none: the experiment gives no observables'}"
        )
    # As the experiment gives them: a loss made anew from its parts could be another one.
    return {name: rebuilt.observables[name] for name in names}


def compare_predictions(args: argparse.Namespace) -> int:
    """Compare snapshots of a walk of an experiment by the predictions of their networks."""
    _check_ahead(args)
    with gf.open_trajectory(args.file) as ds:
        rebuilt = rebuilt_walk(ds, args)
        settings: dict[str, Any] = {
            "snapshots": args.snapshots,
            "classification": rebuilt.classification,
            "progress": not args.quiet,
        }
        sets = {"train": rebuilt.train, "test": rebuilt.test}
        inputs = {name: data.inputs for name, data in sets.items() if data is not None}
        if rebuilt.module is None or not inputs:
            raise InputError(
                f"the network of {ds.attrs['experiment']!r} or its data are not known; return a "
                "PreparedExperiment with module and train or test"
            )
        predictions.check_module(ds, rebuilt.module)
        check_walked(ds, rebuilt.flow.problem, args.snapshots)
        batch = {} if args.batch is None else {"batch_size": args.batch}
        found = predictions.along(
            ds, rebuilt.module, inputs, class_dim=rebuilt.class_dim, **settings, **batch
        )
        try:
            found = found.assign(symmetry.along(ds, rebuilt.module, **settings).data_vars)
        except InputError as error:
            # All else has been checked: it has layers whose symmetries are not known.
            note(f"geoflow: distances to copies are left out: {error}")
    with shown_in_any_case() as attempt:
        attempt(_keep, found, args)
        attempt(_draw, found, args)
        from_first = found.isel(snapshot_other=0)
        columns = {
            f"{head}, {part}": from_first[name].sel(set=part)
            for name, head in PREDICTION_HEADS.items()
            if name in found
            for part in inputs
        }
        columns["‖Δθ‖"] = from_first["parameter_distance"]
        if "symmetric_distance" in found:
            columns["to its nearest copy"] = from_first["symmetric_distance"]
        table = Table("time", *columns, title="from the first of these snapshots")
        for row, time in enumerate(found["snapshot_time"].values):
            table.add_row(f"{time:.4g}", *(f"{float(c[row]):.4g}" for c in columns.values()))
        show(table)
        for line in _symmetry_lines(found):
            say(line)
    return DONE


def _symmetry_lines(found: xr.Dataset) -> list[str]:
    """What of the motion lies along symmetries, in words; nothing where they are not known."""
    if "symmetric_distance" not in found:
        return []
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


def periodogram(args: argparse.Namespace) -> int:
    """Compute power spectra of a walk's scalars, tested against red noise."""
    _check_ahead(args)
    with gf.open_trajectory(args.file) as ds:
        found = periodograms.along(
            ds,
            args.scalar or periodograms.SCALARS,
            against=args.against,
            detrend=args.detrend,
            max_frequency=args.max_frequency,
            n_simulations=args.simulations,
            seed=args.seed,
        )
    with shown_in_any_case() as attempt:
        attempt(_keep, found, args)
        attempt(_draw, found, args)
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
        show(table)
    return DONE


def relaxation(args: argparse.Namespace) -> int:
    """Fit rates to the slow end of a walk, beside the smallest eigenvalues of A."""
    _check_ahead(args)
    with gf.open_trajectory(args.file) as ds:
        curvature = None
        if args.eigenvalues:
            curvature = rebuilt_walk(ds, args).flow
        found = relaxations.along(
            ds,
            scalars=args.scalar or relaxations.SCALARS,
            start=args.start,
            n_terms=args.terms,
            curvature=curvature,
            seed=args.seed,
        )
    with shown_in_any_case() as attempt:
        attempt(_keep, found, args)
        attempt(_draw, found, args)
        table = Table("scalar", "rate", "95% interval", "later half", "predicted", "verdict")
        for name in found["scalar"].values:
            for term in found["term"].values:
                one = found.sel(scalar=name, term=term)
                first = term == 1
                table.add_row(
                    str(name) if first else "",
                    or_dash(one["rate"]),
                    f"{or_dash(one['rate_low'])} to {or_dash(one['rate_high'])}",
                    or_dash(one["late_rate"]) if first else "",
                    or_dash(one["predicted_rate"]) if first else "",
                    one["verdict"].item() if first else "",
                )
        show(table)
        window = f"{found.sizes['sample']} samples from t = {found.attrs['start']:.4g}"
        eigenvalues = ", ".join(f"{v:.4g}" for v in found["smallest_eigenvalue"].values)
        show(f"{window} to {float(found['time'][-1]):.4g}, {found.attrs['final_angle']:.4g}°")
        if args.eigenvalues:
            at = f"t = {found.attrs['curvature_time']:.4g}"
            show(f"smallest eigenvalues of A at {at}: {eigenvalues}")
            show(f"rate at which the recorded velocity falls: {float(found['velocity_rate']):.4g}")
    return DONE


def _check_ahead(args: argparse.Namespace, check: Callable[..., Path] = parts.check_free) -> None:
    """Refuse a target or a seed that cannot be written before anything is read or computed."""
    if hasattr(args, "seed"):
        check_seed(args.seed)
    if args.out is not None:
        check(args.out, overwrite=args.force)


def _keep(found: xr.Dataset, args: argparse.Namespace) -> None:
    """Write what an analysis gave, where that is asked for."""
    if args.out is not None:
        write(netcdf.save_dataset, found, args.out, args.force)
    _say_written(args)


def _say_written(args: argparse.Namespace) -> None:
    if args.out and not args.quiet:
        note(f"wrote {args.out}")


def _draw(found: xr.Dataset, args: argparse.Namespace, file: Path | None = None) -> None:
    """Write the figures that are asked for, and say so.

    Before anything is shown: nobody need read it to the end.
    """
    # The names of files start with the result's own name, where it is kept.
    stem = Path(args.out or file or args.file).stem
    figures = plots.save_figures(found, args.figures, stem) if args.figures else []
    if not args.quiet:
        for path in figures:
            note(f"wrote {path}")
