"""Parts hold what they are given and nothing else, with every NumPy that geoflow takes."""

import zipfile

import numpy as np
import pytest

from geoflow.archive import parts


def test_a_part_holds_its_arrays_and_nothing_else(tmp_path):
    path = tmp_path / "part.npz"
    parts.write(path, {"theta": np.arange(3.0), "n": np.array(7)})
    assert sorted(zipfile.ZipFile(path).namelist()) == ["n.npy", "theta.npy"]
    read = parts.read(path)
    assert sorted(read) == ["n", "theta"]
    assert (read["theta"].tolist(), int(read["n"])) == ([0.0, 1.0, 2.0], 7)


def test_one_of_an_earlier_version_with_an_earlier_numpy_is_read(tmp_path):
    # Whose savez took the option for an array.
    path = tmp_path / "part.npz"
    with zipfile.ZipFile(path, "w") as file:
        for name, array in {"theta": np.arange(3.0), "allow_pickle": np.array(False)}.items():
            with file.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array)
    assert list(parts.read(path)) == ["theta"]


def test_objects_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="theta is an array of objects"):
        parts.write(tmp_path / "part.npz", {"theta": np.array([{}])})
    assert list(tmp_path.iterdir()) == []
