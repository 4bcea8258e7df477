"""Which walks a page puts together, what it calls them, and what it says of what is not known."""

import re

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow import baselines, report
from geoflow.report.page import mean_std
from geoflow.report.parts import Table
from geoflow.report.walks import sentence
from references import small_network

NAN = float("nan")


def network(n_hidden=4, target=1.0):
    """A small network on data that depend on the target."""
    x = torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None] * torch.tensor([[1.0, -0.5, 2.0]])
    torch.manual_seed(0)
    layers = (torch.nn.Linear(3, n_hidden), torch.nn.Tanh(), torch.nn.Linear(n_hidden, 1))
    module = torch.nn.Sequential(*layers).double()
    y = target * x.sum(1, keepdim=True).sin() + 1
    return gf.Problem.from_module(module, torch.nn.functional.mse_loss, x, y)


def walked(file, problem, regularizer=gf.regularizers.squared_norm, level=None, **settings):
    """A short walk in a file, of no experiment unless one is given."""
    flow = gf.RegularizingFlow(gf.LevelSet(problem, level), regularizer)
    settings = {"t_end": 0.05, "stop": None} | settings
    gf.walk(flow, archive=file, **settings).close()
    return file


def page(folder, *files):
    """The sections of a page, and what stands in it."""
    sections = report.report(files, folder / "page.html", overwrite=True)
    return sections, (folder / "page.html").read_text(encoding="utf-8")


def table(section, name):
    return next(p for p in section.parts if isinstance(p, Table) and p.id.startswith(name))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: network(target=20.0), id="data"),
        pytest.param(lambda: network(n_hidden=3), id="network"),
    ],
)
def test_walks_of_other_problems_stand_apart_and_name_their_files(other, tmp_path):
    files = [walked(tmp_path / "a.nc", network()), walked(tmp_path / "b.nc", other())]
    sections, html = page(tmp_path, *files)
    assert [s.title for s in sections] == ["walk: 1 walk, bdf, rtol 0.001, float64"] * 2
    assert {s.summary for s in sections} == {f"Of {file}." for file in files}
    levels = [float(table(s, "runs").rows[0].cells[1]) for s in sections]
    assert levels[0] != levels[1]
    assert f"Of {files[0]}." in html


def test_walks_with_the_same_data_stand_together_on_any_level(tmp_path):
    loss = float(network().loss(network().theta0))
    files = [walked(tmp_path / f"{i}.nc", network(), level=loss * (1 - 0.1 * i)) for i in range(2)]
    (section,), _ = page(tmp_path, *files)
    assert section.title.startswith("walk: 2 walks,")
    assert section.summary == ""


def test_walks_without_data_stand_together_where_they_have_one_level(tmp_path):
    for i, level in enumerate((0.4, 0.4, 0.5)):
        start = torch.tensor([1.0, 0.5, -0.3, 0.2 * i], dtype=torch.float64)
        problem = gf.Problem.from_function(lambda t: (t[:2] ** 2).sum() + t[3] ** 2 * 0.1, start)
        walked(tmp_path / f"{i}.nc", problem, lambda t: ((t - 2) ** 2).sum(), level)
    sections, _ = page(tmp_path, tmp_path)
    assert sorted(len(table(s, "runs").rows) for s in sections) == [1, 2]


def test_runs_of_an_experiment_stand_together_whatever_data_their_seed_gave(tmp_path):
    for seed in range(2):
        named = {"experiment": "own", "seed": seed}
        walked(tmp_path / f"{seed}.nc", network(target=1 + seed), provenance=named)
    (section,), _ = page(tmp_path, tmp_path)
    assert section.title.startswith("own: 2 walks,")


def test_trainings_of_another_network_are_left_out_and_said(tmp_path):
    file = walked(tmp_path / "a.nc", network(), provenance={"experiment": "iris_ff", "seed": 0})
    trained = baselines.weight_decay("iris_ff", penalties=[0.1], seeds=[0], epochs=1)
    baselines.save_weight_decay(trained, tmp_path / "b.nc")
    (section,), _ = page(tmp_path, file, tmp_path / "b.nc")
    (said,) = section.warnings
    n = trained.sizes["parameter"]
    assert said.startswith(f"Left out: trainings with weight decay, of a network of {n:,}")
    assert [row.cells[0] for row in table(section, "penalties").rows] == [
        "walk: start",
        "walk: end",
    ]


def test_no_two_parts_of_a_page_have_one_id(tmp_path):
    walked(tmp_path / "a.nc", network())
    walked(tmp_path / "b.nc", network(), gf.regularizers.l1())
    sections, html = page(tmp_path, tmp_path)
    ids = re.findall(r'id="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert [part.id for part in sections[1].parts] == [f"{p.id}-1" for p in sections[0].parts]
    # A table is named by its own caption.
    assert set(re.findall(r'aria-labelledby="([^"]*)"', html)) <= set(ids)


@pytest.mark.slow
def test_walks_without_a_seed_are_called_by_their_place_everywhere(tmp_path):
    stops = [{}, {"max_evaluations": 20, "t_end": 5.0}, {}]
    for i, settings in enumerate(stops):
        walked(tmp_path / f"{i}.nc", network(), **settings)
    (section,), html = page(tmp_path, tmp_path)
    assert [s.split(" ends")[0] for s in section.sentences] == ["Walk 1", "Walk 2", "Walk 3"]
    (warning,) = section.warnings
    assert warning.startswith("Walk 2 ended early: max_evaluations")
    runs = table(section, "runs")
    assert runs.head[0] == "walk"
    assert [row.cells[0] for row in runs.rows] == ["Walk 1", "Walk 2", "Walk 3"]
    shown = re.sub(r"data:[^\"]*", "", html.split("<script>")[0])
    assert "seed" not in shown.lower()


def test_a_single_walk_without_a_seed_is_this_walk(tmp_path):
    settings = {"max_evaluations": 20, "t_end": 5.0}
    (section,), _ = page(tmp_path, walked(tmp_path / "a.nc", network(), **settings))
    assert section.sentences[0].startswith("This walk ends early (max evaluations) at t = ")
    assert section.warnings[0].startswith("This walk ended early: max_evaluations")
    assert table(section, "runs").rows[0].cells[0] == "This walk"


@pytest.fixture(scope="module")
def ds():
    with gf.walk(small_network(), stop=None, t_end=0.1) as ds:
        return ds.assign(test_loss=("snapshot", np.linspace(0.3, 0.2, ds.sizes["snapshot"])))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("stationary", "ends stationary at t = 0.1"),
        ("t_end", "ends as asked at t = 0.1"),
        ("plateau", "ends on a plateau at t = 0.1"),
        ("max_evaluations", "ends early (max evaluations) at t = 0.1"),
        ("negative_multiplier", "ends early (negative multiplier) at t = 0.1"),
    ],
)
def test_how_a_walk_ended_is_said_in_words(ds, status, words):
    assert f"This walk {words} after" in sentence(ds.assign_attrs(status=status))


@pytest.mark.parametrize("at", [0, -1])
def test_what_is_not_known_at_an_end_is_not_said(ds, at):
    assert "the test loss goes from 0.3 to 0.2" in sentence(ds)
    values = ds["test_loss"].values.copy()
    values[at] = NAN
    said = sentence(ds.assign(test_loss=("snapshot", values)))
    assert "test loss" not in said
    assert "nan" not in said
    assert "the angle goes from" in said


@pytest.mark.parametrize(
    ("values", "name", "text"),
    [
        ([1.0, NAN, 3.0], "test_loss", "2 ± 1.4 (2 of 3)"),
        ([0.5, 0.7, NAN], "test_accuracy", "60.0 ± 14.1% (2 of 3)"),
        ([NAN, 0.25], "test_loss", "0.25 (1 of 2)"),
        ([NAN, NAN], "test_loss", "–"),
        ([np.inf], "test_loss", "inf"),
        ([np.inf, 1.0], "test_loss", "inf"),
    ],
)
def test_a_mean_is_of_what_is_known(values, name, text):
    assert report.mean_std(values, name) == text


@pytest.mark.parametrize(
    ("observables", "words"),
    [
        ((), "Angle and R against"),
        (("test_loss",), "Angle, R and test loss against"),
        (("test_loss", "test_accuracy"), "Angle, R, test loss and test accuracy against"),
    ],
)
def test_a_caption_names_what_its_figure_shows(observables, words, tmp_path):
    functions = dict.fromkeys(observables, lambda t: 0.5)
    file = walked(tmp_path / "a.nc", network(), observables=functions)
    (section,), _ = page(tmp_path, file)
    stack = next(part for part in section.parts if part.id == "stack")
    assert stack.caption.startswith(words)


def of_seeds(folder, *budgets):
    """Walks of one experiment, each of so many evaluations: a single one is of no step."""
    files = []
    for seed, budget in enumerate(budgets):
        settings = {"t_end": None, "max_evaluations": budget}
        named = {"provenance": {"experiment": "small", "seed": seed}}
        files.append(walked(folder / f"{seed}.nc", network(), **settings, **named))
    return files


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        (
            (40, 1, 40),
            [
                "Seed 1 made no step: it is not in the mean against flow time, but in those of the "
                "starts and ends."
            ],
        ),
        ((40, 1), ["Seed 1 made no step: no mean against flow time is drawn."]),
        (
            (1, 1),
            [f"Seed {i} made no step: no mean against flow time is drawn." for i in (0, 1)],
        ),
    ],
)
def test_a_walk_of_no_step_is_on_the_page_and_in_the_means_it_is_said_to_be(
    budgets, said, tmp_path
):
    files = of_seeds(tmp_path, *budgets)
    (section,), html = page(tmp_path, *files)
    assert [line for line in section.warnings if "ended early" not in line] == said
    assert len(table(section, "runs").rows) == len(budgets)
    assert ("thick, with the band" in html) == (budgets.count(40) > 1)
    ends = []
    for file in files:
        with gf.open_trajectory(file) as ds:
            ends.append(float(ds["regularizer"][-1]))
    end = next(r.cells for r in table(section, "penalties").rows if r.cells[0] == "walk: end")
    assert end[1:3] == [str(len(budgets)), mean_std(ends)]


def test_walks_of_one_seed_are_told_apart_on_the_page(tmp_path):
    files = [
        walked(tmp_path / f"{i}.nc", network(), provenance={"experiment": "small", "seed": 1})
        for i in range(2)
    ]
    (section,), _ = page(tmp_path, *files)
    assert [row.cells[0] for row in table(section, "runs").rows] == ["1, walk 1", "1, walk 2"]
    assert [s.split(" ends")[0] for s in section.sentences] == ["Seed 1, walk 1", "Seed 1, walk 2"]


def test_one_walk_of_no_step_leaves_the_rest_of_the_page(tmp_path):
    still = of_seeds(tmp_path, 1, 1)
    other = walked(tmp_path / "other.nc", network(target=20.0))
    sections, _ = page(tmp_path, *still, other)
    assert sorted(len(table(s, "runs").rows) for s in sections) == [1, 2]
