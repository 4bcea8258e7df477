"""A point of a trajectory put back into a network."""

from __future__ import annotations

import json
import math

import torch
import xarray as xr
from torch import nn

from geoflow.errors import InputError
from geoflow.problems import displaced
from geoflow.problems.modules import parameters_by_name
from geoflow.problems.parts import TensorSpec
from geoflow.problems.storage import check_memory
from geoflow.system import kinds
from geoflow.system.translation import reason
from geoflow.trajectories import path_schema
from geoflow.trajectories.given import kept_theta


def load_into(module: nn.Module, ds: xr.Dataset, snapshot: int = -1) -> None:
    """Set a network's parameters to those of a point of a walk or path, all of them or none.

    Parameters
    ----------
    module : torch.nn.Module
        The network that the problem was made of, or one with the same names and shapes. Changed in
        place, each parameter in its own dtype and on its own device. What the walk kept fixed stays
        as it is; tied parameters stay tied; wrappers of ``torch.compile`` and ``DataParallel`` are
        seen through.
    ds : xarray.Dataset
        A trajectory in schema 1.0 to 1.2, or a regularisation path.
    snapshot : int
        Which snapshot, or which point of a path; counted from the end where negative.

    Raises
    ------
    InputError
        There is no such snapshot, the network has no parameters of these names and shapes, or the
        trajectory does not say what theta is made of.

    Examples
    --------
    >>> module = torch.nn.Linear(2, 1).double()
    >>> x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> problem = gf.Problem.from_module(module, torch.nn.functional.mse_loss, x, x[:, :1])
    >>> flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    >>> ds = gf.walk(flow, t_end=0.01, stop=None)
    >>> gf.load_into(module, ds)
    >>> bool((module.weight.flatten() == torch.from_numpy(ds.theta[-1].values[:2])).all())
    True
    """
    specs = tensors_of(ds, module)
    snapshot = kinds.as_whole(snapshot, "snapshot")
    along = "level" if path_schema.is_path(ds) else "snapshot"
    n = ds.sizes.get(along, 0)
    if not -n <= snapshot < n:
        raise InputError(f"snapshot={snapshot}: there are {n}; count from 0, or from −1")
    theta = torch.from_numpy(kept_theta(ds, snapshot, along))
    own = parameters_by_name(module)
    check_memory({s.name: own[s.name] for s in specs}, own)
    with torch.no_grad(), displaced.in_place():
        for spec in specs:
            part = theta[spec.offset : spec.offset + math.prod(spec.shape)]
            own[spec.name].copy_(part.reshape(spec.shape))


def tensors_of(ds: xr.Dataset, module: nn.Module) -> tuple[TensorSpec, ...]:
    """Where the tensors of a walk or path lie in its θ, each one a parameter of a network.

    The network may have others, which the walk kept fixed. Names are those that problems give,
    whatever is wrapped around modules.

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory in schema 1.0, or a regularisation path.
    module : torch.nn.Module
        The network that was walked, or one with the same names and shapes.

    Raises
    ------
    InputError
        The network has no parameters of these names and shapes, or the trajectory does not say what
        theta is made of.
    """
    kinds.check_kind(module, nn.Module, "module", "the network that was walked")
    kinds.check_dataset(ds, "theta", "tensor_name", "tensor_shape")
    for name in ("tensor_name", "tensor_shape"):
        if ds[name].dims != ("tensor",):
            raise InputError(f"ds: {name} is not along 'tensor'; give all tensors of the walk")
    if "parameter" not in ds["theta"].dims or ds["theta"].ndim > 2:
        raise InputError("ds: theta is not along 'parameter'; give all parameters of the walk")
    own = parameters_by_name(module)
    specs, offset = [], 0
    for name, text in zip(ds["tensor_name"].values, ds["tensor_shape"].values, strict=True):
        try:
            shape = tuple(json.loads(text))
            size = int(torch.Size(shape).numel())
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                f"ds: tensor_shape of {str(name)!a} is not a JSON list of lengths "
                f"({reason(error)}); see gf.validate of its file"
            ) from None
        parameter = own.get(str(name))
        if parameter is None or tuple(parameter.shape) != shape:
            found = (
                "has none of that name" if parameter is None else f"has {tuple(parameter.shape)}"
            )
            raise InputError(
                f"module: the walk moved {name} of shape {shape}, and the module {found}; give the "
                "network that was walked"
            )
        specs.append(TensorSpec(str(name), offset, shape))
        offset += size
    if offset != ds.sizes["parameter"]:
        raise InputError(
            f"ds: its tensors hold {offset} parameters, theta {ds.sizes['parameter']}; see "
            "gf.validate of its file"
        )
    return tuple(specs)
