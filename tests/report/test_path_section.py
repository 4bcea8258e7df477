import re

import numpy as np
import pytest

import drawn
from geoflow import report
from geoflow.archive import path_files
from geoflow.errors import InputError
from geoflow.report.paths import path_section, summary


def test_a_path_has_a_sentence_two_figures_and_a_table():
    ds = drawn.path()
    section = path_section("by formula", ds, drawn.trainings(ds), 3)
    assert [p.id for p in section.parts] == ["path-3", "singular-values-3", "points-3"]
    assert section.title == (
        "by formula, seed 0: regularisation path, R = squared_norm:tensors=*.weight"
    )
    assert not section.warnings
    assert "weight decay" in section.parts[0].caption
    table = section.parts[2]
    assert len(table.rows) == ds.sizes["level"]
    # The least test loss is on the level 0.08.
    assert [row.marked for row in table.rows] == [False, True, False, False, False, False]
    column = table.head.index("test accuracy")
    assert table.rows[0].cells[column] == "97.0%"
    assert all(len(row.cells) == len(table.head) for row in table.rows)
    assert [row.cells[-1] for row in table.rows[:2]] == ["200", "250"]


def test_the_sentence_says_what_came_out():
    said = summary(drawn.path())
    assert said == (
        "6 levels from 0.01 to 0.32, at penalties from 0.001 to 0.1, for 450 gradient "
        "evaluations, 200 of them for the first. The least test loss is 0.3, at level 0.08 and "
        "penalty 0.01; at the end of the first walk it is 0.348."
    )
    assert "test loss" not in summary(drawn.path(observables=()))


def test_weight_decay_is_beside_squared_norms_alone_and_an_early_end_is_said():
    ds = drawn.path(status="fold").assign_attrs(regularizer_name="l1")
    section = path_section("by formula", ds, drawn.trainings(ds))
    assert "weight decay" not in section.parts[0].caption
    assert section.warnings == ["The path ended early: fold, by formula."]


def test_a_page_of_a_file(tmp_path):
    path_files.save_path(drawn.path(), tmp_path / "path.nc")
    (section,) = report.report([tmp_path], tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert section.summary in html
    assert html.count("<img") == 2
    assert all(f'id="{part.id}"' in html for part in section.parts)
    assert not re.search(r"None|Undefined", html.split("<body>")[1].split("<img")[0])


def test_what_is_not_known_along_a_path_is_not_said():
    ds = drawn.path()
    values = ds["test_loss"].values.copy()
    values[0] = np.nan
    ds = ds.assign(test_loss=("level", values), test_accuracy=("level", np.full(6, np.nan)))
    said = summary(ds)
    assert "The least test loss is" in said
    assert "nan" not in said
    points = path_section("by formula", ds, None).parts[-1]
    columns = [points.head.index(name) for name in ("test loss", "test accuracy")]
    assert [points.rows[0].cells[i] for i in columns] == ["–", "–"]
    assert [row.cells[columns[1]] for row in points.rows] == ["–"] * 6


def test_of_points_in_another_order_the_same_is_said_and_of_a_cut_path_what_is_there():
    ds = drawn.path()
    whole = summary(ds)
    rows = path_section("by formula", ds, None).parts[-1].rows
    for other in (ds.isel(level=slice(None, None, -1)), ds.sortby("penalty"), ds.transpose()):
        assert summary(other) == whole
        assert path_section("by formula", other, None).parts[-1].rows == rows
    assert summary(ds.isel(level=slice(1, None))) == (
        "5 levels from 0.01 to 0.32, at penalties from 0.001 to 0.1, for 450 gradient "
        "evaluations. The least test loss is 0.3, at level 0.08 and penalty 0.01."
    )
    with pytest.raises(InputError, match=r"there is no dimension 'level'; cut a path by a list"):
        summary(ds.isel(level=0))
