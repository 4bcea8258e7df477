"""Whether a loss is a function of θ: of no weights beside, none of before, and none twice."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from geoflow.errors import GeoflowError, InputError
from geoflow.problems import alone, derivatives, displaced, modules
from geoflow.problems.first_evaluation import changed, copy_of, of_first_data
from geoflow.problems.graph import leaf_ids
from geoflow.problems.kept import check_used as check_used
from geoflow.problems.kept import tensors_kept, watched
from geoflow.problems.nearby import nearby
from geoflow.problems.parts import Parameters
from geoflow.problems.scaling import length

# (module, parameters that take the place of its own, loss that was copied with it) → loss.
Loss = Callable[[nn.Module, Parameters, nn.Module | None], Tensor]

LIVE = (
    "loss: it uses the parameters of the module itself, which stay as they are while θ moves; "
    "write it with Problem.from_batches, whose batch_loss gets the module with the θ in question, "
    "or take those of a copy (copy.deepcopy) where they are data"
)


def check(
    module: nn.Module,
    network: modules.Network,
    loss: Loss,
    loss_module: nn.Module | None = None,
    of: str = "loss_fn",
) -> None:
    """Refuse a loss that is not a function of the parameters that move, by seven evaluations.

    The first is at the copy's own parameters. Two near them tell what else is in the graph, and
    what is random. At the fourth the user's own are others, to tell what uses those. The fifth is
    of a copy that has never been evaluated before, whose parameters are not replaced but set: it
    agrees where all that the loss uses goes with them. Then its gradient is compared with that
    beside which its own are others.

    Parameters
    ----------
    module : torch.nn.Module
        The user's own, which is only read.
    network : Network
        The copy.
    loss : callable
        See :data:`Loss`.
    loss_module : torch.nn.Module, optional
        What computes the loss, where it is a module.
    of : str
        The argument that it is. A ``loss_fn`` is a copy, which shares with the network's what the
        user's own share.

    Raises
    ------
    InputError
        The loss uses weights of the user's module, of a copy or of itself, which would stay as
        they are, or something that was computed of them before; or its gradient does. Or its first
        evaluation sets parameters, or buffers that it then depends on. Or it is no scalar.
    """
    memo: modules.Memo = {}
    unused = modules.duplicate(network.module, memo=memo)
    unused_loss = loss_module
    if loss_module is not None and of == "loss_fn":
        unused_loss = modules.duplicate(loss_module, of, memo)
    # As they were, whatever an evaluation of the other sets; a buffer may be one of the parameters.
    fixed = {n: t.detach() for n, t in _parameters(unused).items() if n in network.fixed}
    fixed.update({n: copy_of(b.detach()) for n, b in unused.named_buffers()})

    def anew(at: Parameters) -> Tensor:
        return loss(unused, {**fixed, **at}, unused_loss)

    _check_live(module, network.module, lambda: loss(network.module, {}, loss_module))
    if initialised := changed(_parameters(unused), _parameters(network.module), network.moving):
        raise of_first_data(initialised)
    initialised = changed(fixed, network.fixed, fixed)
    # With a graph: there may be inner derivatives.
    near, state, value = _evaluated_nearby(
        network, lambda near: loss(network.module, near, loss_module)
    )
    of_loss = {} if loss_module is None else _parameters(loss_module)
    _check_graph(value, network, of_loss, of, lambda: _uses_own(anew(near), unused))
    first, second = value.detach(), loss(network.module, near, loss_module).detach()
    # What is random or stateful is refused by a message of its own.
    if not torch.equal(first, second):
        return
    own = modules.parameters_by_name(module)
    theirs = [own[name] for name in network.moving if name in own]
    if displaced.has_part(theirs, lambda: loss(network.module, near, loss_module), second):
        raise InputError(LIVE)
    _set(unused, near)
    found = anew({}).detach()
    if _close(first, found):
        right = _gradient(lambda _: anew({}), near, unused)
        # Far from those near: of a few examples, ReLU has the same derivative at both else.
        _set(unused, nearby(near, 10.0))
        for name in near:
            unused.get_parameter(name).requires_grad_()
        _check_gradient(_gradient(anew, near), right)
        return
    # With what the evaluations of the other have set it is the same.
    if initialised and _close(first, loss(unused, {}, unused_loss).detach()):
        raise of_first_data(initialised)
    if not torch.equal(state, _generator_state(network)):
        raise InputError(
            "loss: it draws random numbers and differs by them; remove the randomness (for a "
            "module, call module.eval(); functional.dropout wants training=self.training)"
        )
    # What an evaluation near θ0 has left there, if anything, goes on.
    _set(unused, network.moving)
    if _close(first, anew(near).detach()):
        raise InputError(
            "module: it holds weights beside its parameters (a list, another object, .data or "
            f"detach), which stay as they are while θ moves: its loss is {float(first):.6g} where "
            f"it should be {float(found):.6g}; reach each through the layer that it is of"
        )
    raise InputError(
        "module: it keeps something that its first evaluation computed from its weights: at "
        f"other weights its loss is {float(first):.6g}, and of a new copy {float(found):.6g}; "
        "compute it at every evaluation, or all of it in __init__, or call module.train() if it is "
        "kept in evaluation mode only"
    )


def _evaluated_nearby(
    network: modules.Network, function: Callable[[Parameters], Tensor]
) -> tuple[Parameters, Tensor, Tensor]:
    """Other parameters that the loss has a value at, the generators' state before, and the value.

    A loss need not have one far from θ0, as that of a Cholesky factor.
    """
    sizes = [0.1, 1e-3, 1e-5]
    for by in sizes:
        near, state = nearby(network.moving, by), _generator_state(network)
        try:
            value = function(near)
        except (GeoflowError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError):
            if by == sizes[-1]:
                raise
            continue
        if torch.isfinite(value.detach()):
            break
    return near, state, value


def _gradient(
    function: Callable[[Parameters], Tensor], at: Parameters, module: nn.Module | None = None
) -> list[Tensor]:
    """Gradient in parameters, or in a module's own of the same names; none where there is none."""
    variables = derivatives.variables_of(at)
    if module is not None:
        variables = {n: p.requires_grad_() for n, p in _parameters(module).items() if n in at}
    with torch.enable_grad():
        value = function(variables)
    if not value.requires_grad:
        return []
    return derivatives.gradients_of([value], [variables[n] for n in at], None)


def _check_gradient(found: list[Tensor], right: list[Tensor]) -> None:
    """Refuse what is computed with the copy's own parameters, but only for the gradient.

    Checkpointing computes again in the backward pass, when none are replaced any more. Near θ0 no
    differences tell of it: the gradient is wrong by as much as θ differs.
    """
    off = math.hypot(*(length(a - b) for a, b in zip(found, right, strict=False)))
    size = math.hypot(*map(length, right))
    if right and not off <= 1e4 * torch.finfo(right[0].dtype).eps * size:
        raise InputError(
            f"module: at other weights than its own its gradient is off by {off / size:.1e} of its "
            "norm, so they are not in the gradient everywhere (checkpointing and odeint_adjoint "
            "compute again at its own weights, in the backward pass); leave that out, as by "
            "use_checkpoint=False, or odeint"
        )


@alone.in_turn
def _check_live(module: nn.Module, copied: nn.Module, evaluate: Callable[[], Tensor]) -> None:
    """Refuse a loss that uses the user's module beside the one it is given."""
    before = dict(tensors_kept(copied))
    kept: dict[tuple[str, str], Tensor] = {}
    with torch.enable_grad():
        try:
            # Other threads may be making problems of it.
            with displaced.in_place(), watched(modules.unwrap(module)) as kept:
                value = evaluate()
        # A leaf cannot be written into nor taken to NumPy, as what it stands for can. Without it
        # there is no telling whether it is in the graph. Other errors come again.
        except RuntimeError:
            kept, before = {}, dict(tensors_kept(copied))
            value = evaluate()
    if value.shape != ():
        raise InputError(
            f"loss_fn returned shape {tuple(value.shape)}; it must return a scalar mean "
            "(reduction='mean')"
        )
    if value.is_complex():
        raise InputError(f"loss: it is {value.dtype}; return a real scalar tensor")
    used = leaf_ids(value)
    if any(id(p) in used for p in module.parameters() if p.requires_grad):
        raise InputError(LIVE)
    # What an evaluation leaves behind is of the weights; a mask, say, stays as it is.
    for place, tensor in tensors_kept(copied):
        if place in kept and id(kept[place]) in used and tensor is not before.get(place):
            raise InputError(
                f"loss: it uses what the module itself keeps of an evaluation ({place[1]}), which "
                "stays as it is while θ moves; write it with Problem.from_batches, whose "
                "batch_loss gets the module with the θ in question"
            )


def _uses_own(value: Tensor, module: nn.Module) -> bool:
    used = leaf_ids(value)
    return any(id(p) in used for p in module.parameters())


def _check_graph(
    value: Tensor,
    network: modules.Network,
    of_loss: dict[str, nn.Parameter],
    of: str,
    at_first: Callable[[], bool],
) -> None:
    """Refuse a loss at other parameters that uses the copy's own, or such of a loss.

    ``at_first`` tells whether a copy that has never been evaluated uses its own, too.
    """
    used = leaf_ids(value)
    own = {id(p): n for n, p in _parameters(network.module).items() if n in network.moving}
    for name, parameter in of_loss.items():
        if id(parameter) in used and id(parameter) in own:
            raise InputError(LIVE)
        if id(parameter) in used:
            raise InputError(
                f"{of}: its parameter {name} is no part of θ, which is the module's; make it one "
                f"of the module's, or fix it by {of}.requires_grad_(False)"
            )
    held = [name for parameter_id, name in own.items() if parameter_id in used]
    if held and not at_first():
        raise InputError(
            f"module: it keeps something that its first evaluation computed from {held[0]}, "
            "which stays as it is while θ moves; compute it at every evaluation, or call "
            "module.train() if it is kept in evaluation mode only"
        )
    if held:
        raise InputError(
            f"module: it holds {held[0]} beside its parameters (in a list, another object), and "
            "uses that, which stays as it is while θ moves; reach it through the layer that it is "
            "of"
        )


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters())


def _set(module: nn.Module, values: Parameters) -> None:
    """Set parameters in place, so that whatever shares them has them too."""
    for name, parameter in module.named_parameters():
        # As of those that take its place no gradient is asked for, and the kernels are the same.
        parameter.requires_grad_(False)
        if name in values and parameter.is_inference():
            parameter.data = values[name].clone()
        elif name in values:
            parameter.data.copy_(values[name])


def _close(first: Tensor, second: Tensor) -> bool:
    rtol = max(1e4 * torch.finfo(first.dtype).eps, 1e-9)
    return torch.allclose(first, second, rtol=rtol, atol=0)


def _generator_state(network: modules.Network) -> Tensor:
    device = next(iter(network.moving.values())).device
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)
