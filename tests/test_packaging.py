"""What is published: built twice it is the same, and it holds what it should and no more."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is made of it, from two copies of the tree."""
    folders = []
    for run in ("first", "second"):
        copy = tmp_path_factory.mktemp(run) / "tree"
        shutil.copytree(
            ROOT,
            copy,
            ignore=shutil.ignore_patterns(".venv", ".git", "runs", "_build", "gallery", ".*cache"),
        )
        out = copy.parent / "dist"
        subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy],
            check=True,
            capture_output=True,
            env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        )
        folders.append(out)
    return folders


@pytest.mark.slow
def test_two_builds_are_the_same_to_the_bit(built):
    first, second = (
        {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
        for folder in built
    )
    assert first == second
    assert sorted(name.rsplit("-", 1)[-1].split(".")[-1] for name in first) == ["gz", "whl"]


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_sdist_what_it_is_tested_with(built):
    (wheel,), (sdist,) = built[0].glob("*.whl"), built[0].glob("*.tar.gz")
    inside = zipfile.ZipFile(wheel).namelist()
    assert {"geoflow/py.typed", "geoflow/report/templates/report.html"} <= set(inside)
    assert {name.split("/")[0].split("-")[0] for name in inside} == {"geoflow"}
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"tests/test_packaging.py", "docs/conf.py", "docs/examples/02_iris.py"} <= names
    assert {"Makefile", "constraints.txt", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"} <= names
    assert not [name for name in names if name.startswith(("docs/gallery/", "docs/_build/"))]
