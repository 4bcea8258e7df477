"""A walk that keeps no θ, or a single one: what needs more says so in one line."""

import pytest
from test_argument_lists import OWN, PROBLEM, working_in

from geoflow import cli
from geoflow.cli.terminal import BAD_INPUT, DONE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    with working_in(folder):
        (folder / "mine.py").write_text(PROBLEM)
        for name, time in (("none", "5"), ("one", "0.1"), ("two", "0.1,0.2")):
            (folder / name).mkdir()
            command = ["run", *OWN, "--quiet", "--t-end", "0.2", "--snapshot-times", time]
            assert cli.main([*command, "--out", f"{name}/seed-0000.nc"]) == DONE
    return folder


NONE = {
    "spectrum": (OWN, "ds holds no snapshot"),
    "predictions": (OWN, "ds holds no snapshot"),
    "pca": ([], "points: no point is there, and it takes two"),
    "slice": ([*OWN, "--out", "x.nc"], "points: no point is there, and it takes two"),
    "slice --through": (
        [*OWN, "--out", "x.nc", "--through=0,1,2"],
        "through=[0, 1, 2]: ds holds 0",
    ),
    "slice --random": ([*OWN, "--out", "x.nc", "--random"], "ds holds no snapshot"),
    "periodogram": (["--scalar", "pc1"], "points: no point is there"),
    "relaxation": ([*OWN, "--eigenvalues", "--scalar", "angle"], "ds holds no snapshot"),
    "report": (["--out", "x.html"], "none/seed-0000.nc holds no snapshot; leave it out"),
}


@pytest.mark.parametrize("name", NONE)
def test_no_snapshot_is_one_line(folder, capsys, name):
    options, message = NONE[name]
    with working_in(folder):
        command = [name.split(maxsplit=1)[0], "none/seed-0000.nc", *options]
        assert cli.main([*command, "--quiet"] if "report" not in name else command) == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert f"geoflow: error: {message}" in captured.err
    assert not list(folder.glob("x.*"))


TWO = {
    "pca": (
        ["--components=6"],
        "n_components=6: 2 points have one component; ask for fewer, or",
    ),
    "pca --null-models": (["--components=1"], "null_models=True: the walk of seed 0 has 2 snap"),
    "slice": ([*OWN, "--out", "x.nc"], "ds holds 2 snapshots, which span no plane; walk again"),
}


@pytest.mark.parametrize("name", TWO)
def test_two_snapshots_are_too_few_in_one_line_with_its_remedy(folder, capsys, name):
    options, message = TWO[name]
    command, *more = name.split()
    with working_in(folder):
        arguments = [command, "two/seed-0000.nc", *more, *options, "--quiet"]
        assert cli.main(arguments) == BAD_INPUT
    assert f"geoflow: error: {message}" in capsys.readouterr().err
    assert not list(folder.glob("x.*"))


def test_two_snapshots_have_one_component(folder, capsys):
    with working_in(folder):
        assert cli.main(["pca", "two/seed-0000.nc", "--quiet", "--figures", "drawn"]) == DONE
    assert "2 points; participation ratio 1.000; components: 1 for 90%" in capsys.readouterr().out
    drawn = {path.name for path in (folder / "drawn").glob("*.png")}
    assert drawn == {"seed-0000-explained-variance.png"}


@pytest.mark.parametrize(
    "command", ["info", "validate", pytest.param("plot", marks=pytest.mark.slow)]
)
def test_what_needs_no_snapshot_takes_such_a_walk(folder, tmp_path, capsys, command):
    more = ["--out", str(tmp_path)] if command == "plot" else []
    for name in ("none", "one"):
        assert cli.main([command, str(folder / name / "seed-0000.nc"), *more]) == DONE


def test_folders_of_such_walks(folder, tmp_path, capsys):
    for name, command, message in (
        ("none", ["plot", "--out", str(tmp_path)], "the walk of seed 0 has no snapshot"),
        ("one", ["plot", "--out", str(tmp_path)], "no range of time in common"),
        ("none", ["pca"], "no point is there"),
        ("one", ["pca"], "a single point is there, and it takes two"),
    ):
        assert cli.main([command[0], str(folder / name), *command[1:]]) == BAD_INPUT
        assert message in capsys.readouterr().err
    page = tmp_path / "page.html"
    assert cli.main(["report", str(folder / "one"), "--out", str(page)]) == DONE
    assert page.stat().st_size > 10_000
