"""Archives changed at random, each by its number: what a file can say that geoflow never wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import doctored
from geoflow.archive import seal

Random = np.random.Generator

TEXTS = ["", "x", "π", "\x1b[2J\n", "nan", "1e999", "../../etc/passwd", "x" * 10_000, "[" * 5000]
NUMBERS = [0, -1, 1, 7, 2**62, -(2**62), 1e-320, 1e300, np.nan, np.inf, -np.inf, 0.5]
LISTS = [[], [1.0, 2.0], ["a", "b"], [np.nan] * 50]

# Attributes that netCDF readers act on by themselves.
OBEYED = {
    "scale_factor": [2.0, 0.0, "x", [1.0, 2.0]],
    "add_offset": [1.0, np.nan, "x"],
    "_FillValue": [0, 0.0, "x"],
    "missing_value": [0.0, [0.0, 1.0], "x"],
    "valid_range": [[0.0, 1.0], "x"],
    "_Unsigned": ["true", "x"],
    "units": ["days since 1-1-1", "seconds since x", "", 3],
    "calendar": ["noleap", "x"],
    "coordinates": ["theta", "nothing", "", 3],
    "dtype": ["bool", "object", "x", 3],
    "_Encoding": ["utf-16", "x", 3],
    "ancillary_variables": ["x"],
    "cell_methods": ["x: y"],
    "grid_mapping": ["x"],
    "bounds": ["x"],
    "formula_terms": ["a: b"],
    "CLASS": ["DIMENSION_SCALE", "x"],
    "NAME": ["x"],
    "_Netcdf4Dimid": [0, -1, 99, "x"],
    "_Netcdf4Coordinates": [[0, 0], [99], "x"],
    "_NCProperties": ["", "version=9"],
    "_nc3_strict": [1],
}

# What stands where JSON is.
ODD = [None, True, "x", "", -1, 0, 3, 1e6, 10**12, -(2**63), 10**30, np.nan, np.inf, [], {}]
ODDER = [[1], ["x"], {"x": 1}, [[[[]]]], "9" * 1000, "nothing", 1e-300, [None] * 100]
RAW = ["", "{}", "[]", "null", "3", '"x"', "{", "NaN", '{"a": 1, "a": 2}', "[" * 5000, "9" * 5000]


def pick(rng: Random, things: Any) -> Any:
    things = list(things)
    return things[int(rng.integers(len(things)))]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Name every place in what JSON holds, by the keys that lead there."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [found for key, child in items for found in [(*path, key), *places(child, (*path, key))]]


def spoil_json(rng: Random, text: str) -> str:
    """Change one place in a JSON object, or put another text in its stead."""
    if rng.random() < 0.15:
        return str(pick(rng, RAW))
    content = json.loads(text)
    *above, key = pick(rng, places(content))
    owner = content
    for each in above:
        owner = owner[each]
    what = rng.random()
    if what < 0.2:
        del owner[key]
    elif what < 0.25 and isinstance(owner, dict):
        owner[f"{key} "] = owner.pop(key)
    else:
        owner[key] = pick(rng, ODD + ODDER)
    return json.dumps(content)


def variables(file: h5py.File) -> list[str]:
    """Names of all data sets that are variables; those of the checkpoint too."""
    found: list[str] = []

    def see(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not (item.is_scale and "units" not in item.attrs):
            found.append(name)

    file.visititems(see)
    return found


def text_of(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def put(owner: Any, name: str, value: Any) -> None:
    """Set an attribute, texts as netCDF has them."""
    if isinstance(value, str) and value and value.isascii():
        value = np.bytes_(value)
    owner.attrs[name] = value


def an_attribute(rng: Random, file: h5py.File) -> str:
    owners = ["/", "/", "/", *variables(file)]
    owner = file[pick(rng, owners)]
    names = [n for n in owner.attrs if n not in ("DIMENSION_LIST", "REFERENCE_LIST")]
    what = rng.random()
    if what < 0.3 or not names:
        name = pick(rng, OBEYED)
        value = pick(rng, OBEYED[name])
        put(owner, name, value)
        return f"{owner.name}: {name} = {value!r}"
    name = pick(rng, names)
    if what < 0.45:
        del owner.attrs[name]
        return f"{owner.name}: {name} left out"
    value = pick(rng, TEXTS + NUMBERS + LISTS)
    put(owner, name, value)
    return f"{owner.name}: {name} = {str(value)[:40]!r}"


def a_json_text(rng: Random, file: h5py.File) -> str:
    """Change an attribute that holds JSON: the settings, or the checkpoint's state."""
    where = [("/", "config"), ("/", "config"), ("checkpoint", "state"), ("/", "settings")]
    there = [(o, n) for o, n in where if o in file and n in file[o].attrs]
    if not there:
        return an_attribute(rng, file)
    owner, name = pick(rng, there)
    changed = spoil_json(rng, text_of(file[owner].attrs[name]))
    put(file[owner], name, changed)
    return f"{owner}: {name} = {changed[:300]!r}"


def values_of(rng: Random, file: h5py.File) -> str:
    """Change some or all values of a variable."""
    name = pick(rng, variables(file))
    variable = file[name]
    values = variable[...]
    if values.dtype.kind == "S":
        new = pick(rng, [b"\xff", b"[", b"0", b" ", b"\0"])
    else:
        limits = [-(2**63), 2**63 - 1, 0, -1, 10**9] if values.dtype.kind in "iu" else NUMBERS
        new = np.clip(pick(rng, limits), *limits[:2]) if values.dtype.kind in "iu" else None
        new = pick(rng, limits) if new is None else new
    if not values.size:
        return f"{name} is empty"
    if rng.random() < 0.4:
        values[...] = new
    elif values.ndim:
        values[tuple(int(rng.integers(n)) for n in values.shape)] = new
    if rng.random() < 0.2 and values.ndim:
        values = values[::-1]
    variable[...] = values
    return f"{name} gets {new!r}"


def a_variable(rng: Random, file: h5py.File) -> str:
    """Leave a variable out, rename it, or give it another type or shape."""
    name = pick(rng, variables(file))
    what = pick(rng, ["gone", "renamed", "dtype", "dtype", "shape", "shape", "scalar", "exchanged"])
    if what == "gone":
        del file[name]
        return f"{name} left out"
    if what == "renamed":
        new = pick(rng, ["x", "a b", "rm -rf", "é", "time2", "kind", "step", "\x1b[2J"])
        if new not in file:
            file.move(name, new)
        return f"{name} renamed {new!r}"
    if what == "exchanged":
        other = pick(rng, variables(file))
        if other != name:
            file.move(name, "between")
            file.move(other, name)
            file.move("between", other)
        return f"{name} and {other} exchanged"
    old = file[name]
    values = old[...]
    if what == "dtype":
        with np.errstate(all="ignore"):
            values = values.astype(pick(rng, ["f4", "f8", "i1", "i4", "i8", "u8", "S1"]))
    elif what == "scalar":
        values = values.reshape(-1)[0] if values.size else np.float64(0)
    else:
        values = pick(rng, [values[:0], values[:1], values[:-1], np.concatenate([values, values])])
    attributes = {n: old.attrs[n] for n in ("units", "long_name", "coordinates") if n in old.attrs}
    scales = [d[0] for d in old.dims if len(d)]
    is_scale = old.is_scale
    del file[name]
    try:
        new = file.create_dataset(name, data=values)
    except TypeError:
        return f"{name} left out"
    for key, value in attributes.items():
        new.attrs[key] = value
    if not is_scale and new.ndim == len(scales):
        for i, scale in enumerate(scales):
            new.dims[i].attach_scale(scale)
    return f"{name} has {new.dtype}, {new.shape}"


def a_dimension(rng: Random, file: h5py.File) -> str:
    """Rename a dimension, give it another length, or put a variable on another."""
    scales = [n for n in file if isinstance(file[n], h5py.Dataset) and file[n].is_scale]
    name = pick(rng, scales)
    what = rng.random()
    if what < 0.3:
        file.move(name, "renamed")
        return f"dimension {name} renamed"
    if what < 0.6 and "units" not in file[name].attrs:
        length = int(pick(rng, [0, 1, 3, 1000, 10**6, 10**12]))
        users = [
            v for v in variables(file) if name in [d[0].name[1:] for d in file[v].dims if len(d)]
        ]
        del file[name]
        scale = file.create_dataset(name, (length,), ">f4")
        scale.make_scale(f"This is a netCDF dimension but not a netCDF variable.{length:10d}")
        for user in users:
            variable = file[user]
            if "DIMENSION_LIST" in variable.attrs:
                del variable.attrs["DIMENSION_LIST"]
            if variable.ndim == 1:
                variable.dims[0].attach_scale(scale)
        return f"dimension {name} has {length}"
    variable = file[pick(rng, variables(file))]
    if "DIMENSION_LIST" in variable.attrs and not variable.is_scale:
        del variable.attrs["DIMENSION_LIST"]
    for i in range(0 if variable.is_scale else variable.ndim):
        variable.dims[i].attach_scale(file[pick(rng, scales)])
    return f"{variable.name} on other dimensions"


IN_HDF5: list[Callable[[Random, h5py.File], str]] = [
    *[an_attribute] * 3,
    *[a_json_text] * 3,
    *[values_of] * 3,
    *[a_variable] * 3,
    a_dimension,
]


def bytes_of(rng: Random, path: Path) -> str:
    """Cut a file, or change some of its bytes."""
    content = bytearray(path.read_bytes())
    what = pick(rng, ["cut", "flipped", "flipped", "zeroed", "doubled", "inserted", "tail"])
    place = int(rng.integers(len(content)))
    # The names and the shapes of things stand at the beginning.
    place = place // 20 if rng.random() < 0.5 else place
    if what == "cut":
        content = content[:place]
    elif what == "flipped":
        for i in rng.integers(place, min(place + 2000, len(content)), int(rng.integers(1, 9))):
            content[i] ^= 1 << int(rng.integers(8))
    elif what == "zeroed":
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    elif what == "doubled":
        content = content * 2
    elif what == "inserted":
        content[place:place] = bytes(rng.integers(0, 256, 8, dtype=np.uint8))
    else:
        content += bytes(rng.integers(0, 256, 100, dtype=np.uint8))
    path.write_bytes(content)
    return f"{what} at {place}"


def doctor(rng: Random, path: Path, foreign: Path) -> str:
    """Change a file, seal it anew more often than not, and say what has been changed."""
    sealed = seal.defect(path) is None
    what = rng.random()
    changes = []
    # Not everything can be done to every file, and not one thing after every other.
    with suppress(KeyError, ValueError, TypeError, OSError, RuntimeError):
        if what < 0.12:
            name = pick(rng, doctored.STRUCTURES)
            changes.append(name)
            doctored.STRUCTURES[name][0](path, foreign)
        elif what < 0.3:
            changes.append(bytes_of(rng, path))
        else:
            with h5py.File(path, "r+") as file:
                for _ in range(int(rng.integers(1, 3))):
                    changes.append(pick(rng, IN_HDF5)(rng, file))
    if sealed and rng.random() < 0.8:
        seal.append(path)
        changes.append("sealed")
    return "; ".join(changes)
