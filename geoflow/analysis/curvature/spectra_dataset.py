"""Spectra along a walk as a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

VARIABLES = {
    "largest_eigenvalue": ("largest eigenvalues, falling", "1"),
    "largest_residual": ("bound on the error of largest_eigenvalue", "1"),
    "smallest_eigenvalue": ("smallest eigenvalues, rising", "1"),
    "smallest_residual": ("bound on the error of smallest_eigenvalue", "1"),
    "trace": ("trace", "1"),
    "trace_error": ("standard error of the trace, widened where probes are few", "1"),
    "abscissa": ("eigenvalue at which the density is taken", "1"),
    "density": ("spectral density, integrating to 1", "1"),
    "density_error": ("standard error of the density, widened where probes are few", "1"),
    "node": ("nodes of stochastic Lanczos quadrature", "1"),
    "weight": ("weights of the nodes, 1 in all for each probe", "1"),
    "velocity_overlap": ("squared cosine of the velocity with the top eigenspace", "1"),
    "normal_curvature": ("normal curvature of the level set along the velocity", "1"),
    "multiplier": ("Lagrange multiplier", "1"),
    "n_hvp": ("Hessian-vector products spent on the snapshot", "1"),
}


def assemble(
    ds: xr.Dataset,
    indices: list[int],
    operators: Sequence[str],
    rows: list[tuple[list[dict[str, Any]], float, float, int]],
    attributes: dict[str, Any],
) -> xr.Dataset:
    """Spectra at snapshots of a walk, with the times and steps of these.

    Parameters
    ----------
    ds : xarray.Dataset
        The walk.
    indices : list of int
        Of the snapshots, along ``snapshot``.
    operators : sequence of str
        Names of the operators.
    rows : list of tuple
        Of each snapshot: what each operator has, by name; the normal curvature along the velocity;
        the multiplier; and the Hessian-vector products spent.
    attributes : dict
        Global attributes.

    Returns
    -------
    xarray.Dataset
        See :func:`~geoflow.analysis.curvature.spectra.along`.
    """
    dims = {
        "trace": (),
        "trace_error": (),
        "velocity_overlap": (),
        "node": ("probe", "lanczos"),
        "weight": ("probe", "lanczos"),
        "abscissa": ("point",),
        "density": ("point",),
        "density_error": ("point",),
    }
    variables: dict[str, Any] = {}
    for name in rows[0][0][0]:
        if name != "dimension":
            values = np.array([_as_wide([cell[name] for cell in row[0]], name) for row in rows])
            variables[name] = (("snapshot", "operator", *dims.get(name, ("rank",))), values)
    for position, name in enumerate(("normal_curvature", "multiplier", "n_hvp"), start=1):
        variables[name] = ("snapshot", np.array([row[position] for row in rows]))
    described = {
        name: (*content, {"long_name": VARIABLES[name][0], "units": VARIABLES[name][1]})
        for name, content in variables.items()
    }
    dimension = [cell["dimension"] for cell in rows[0][0]]
    size = {"long_name": "dimension of the operator", "units": "1"}
    ranks = {"long_name": "rank from the end of the spectrum, 0 at the end", "units": "1"}
    result = xr.Dataset(
        described,
        coords={
            "operator": ("operator", list(operators), {"long_name": "operator", "units": "1"}),
            "dimension": ("operator", dimension, size),
            "rank": ("rank", np.arange(variables["largest_eigenvalue"][1].shape[-1]), ranks),
        },
        attrs=attributes,
    )
    chosen = ds[["snapshot_time", "snapshot_step"]].isel(snapshot=indices).load()
    return result.assign_coords(chosen.coords).set_coords("abscissa")


def in_ranks(ds: xr.Dataset) -> xr.Dataset:
    """Spectra with the eigenvalues of each end from that end inwards, however they were cut.

    Spectra of earlier versions do not say their ranks, and are taken to have all of them in order.
    """
    return (
        ds.sortby("rank")
        if "rank" in ds.coords
        else ds.assign_coords(rank=np.arange(ds.sizes["rank"]))
    )


def _as_wide(cells: list[Any], name: str) -> list[Any]:
    """What each operator has, padded where a small one has fewer Lanczos steps than another."""
    if name not in ("node", "weight"):
        return cells
    width = max(cell.shape[1] for cell in cells)
    filling = np.nan if name == "node" else 0.0
    return [
        np.pad(cell, ((0, 0), (0, width - cell.shape[1])), constant_values=filling)
        for cell in cells
    ]
