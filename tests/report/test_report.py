import base64
import hashlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import geoflow as gf
from geoflow import baselines, cli, comparisons, report
from geoflow.archive import netcdf
from geoflow.cli import terminal
from geoflow.errors import ArchiveError, InputError
from references import small_network

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
]
# What a browser finds, written into the page where --dump-dom shows it.
PROBE = """<script>
window.onload = () => {
  const images = [...document.images];
  const drawn = images.filter(i => i.complete && i.naturalWidth > 100).map(i => i.parentNode.id);
  document.title = `found ${images.length} drawn ${drawn.join(",")}`;
};
</script></head>"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three walks of a small network, and trainings at two penalties with the same names."""
    folder = tmp_path_factory.mktemp("report")
    problem = small_network().problem
    loss = float(problem.loss(problem.theta0))
    for seed in range(3):
        level_set = gf.LevelSet(problem, loss * (1 - 0.2 * seed))
        gf.walk(
            gf.RegularizingFlow(level_set, gf.regularizers.squared_norm),
            stop=gf.Stationary(150.0),
            observables={
                "test_loss": lambda t: float(t.norm()) / 10,
                "test_accuracy": lambda t: 0.9,
            },
            provenance={"experiment": "iris_ff", "seed": seed, "title": "<b>iris</b>"},
            archive=folder / f"{seed}.nc",
        )
    rng = np.random.default_rng(0)
    trained = baselines.weight_decay("iris_ff", penalties=[0.0, 0.1], seeds=[0, 1], epochs=1)
    theta = rng.normal(size=(2, 2, problem.n_parameters))
    small = trained.drop_vars("theta").assign(
        theta=(("penalty", "run", "parameter"), theta, trained["theta"].attrs)
    )
    baselines.save_weight_decay(small, folder / "baseline.nc")
    return folder


@pytest.fixture(scope="module")
def page(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    sections = report.report([files], path)
    return path, sections


def test_the_page_has_every_figure_and_table_of_the_paper(page):
    path, (section,) = page
    assert [part.id for part in section.parts] == [
        "runs",
        "stack",
        "penalties",
        "penalties-figure",
        "pca",
        "variance",
        "off-plane",
    ]
    assert section.title == "iris_ff: 3 walks, bdf, rtol 0.001, float64"
    assert not section.warnings
    html = path.read_text(encoding="utf-8")
    assert all(f'id="{part.id}"' in html for part in section.parts)
    assert html.count("alt=") == html.count("<img") == 3


def test_the_page_needs_nothing_but_itself(page):
    html = page[0].read_text(encoding="utf-8")
    assert not re.search(r"""(src|href|data|action)\s*=\s*["'](?!data:image/svg)""", html)
    assert not re.search(r"url\(|@import|<script\s|<link|<iframe", html)
    assert "default-src 'none'" in html


def test_the_page_s_own_script_is_the_only_one_that_may_run(page):
    html = page[0].read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    (allowed,) = re.findall(r"script-src '(.*?)'", html)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert allowed == f"sha256-{digest}"


def opened(html, folder, *flags):
    """What the page's title is once a browser has opened it, and what it said on the way."""
    copy = folder / "probed.html"
    copy.write_text(html, encoding="utf-8")
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, *flags, profile, "--dump-dom", copy.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return re.search(r"<title>(.*?)</title>", done.stdout)[1], done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_script_from_elsewhere_does_not_run(page, tmp_path):
    html = page[0].read_text(encoding="utf-8")
    foreign = html.replace("</body>", "<script>document.title = 'ran';</script></body>")
    title, said = opened(foreign, tmp_path)
    assert title != "ran"
    assert "violates the following Content Security Policy" in said


# Presses what a reader presses, and writes what comes of it into the title. A dialog's close comes
# a turn later, and a page is dumped once it has loaded: an open document in a frame holds that up.
PRESSED = """<script>
document.addEventListener("DOMContentLoaded", () => {
  const held = document.body.appendChild(document.createElement("iframe")).contentDocument;
  held.open();
  const found = [];
  const table = document.getElementById("runs");
  const column = (i) => [...table.tBodies[0].rows].map(r => r.cells[i].textContent).join(",");
  const head = table.tHead.rows[0].cells[0], press = head.querySelector("button");
  found.push(column(0)); press.click();
  found.push(column(0), head.getAttribute("aria-sort")); press.click();
  found.push(column(0), head.getAttribute("aria-sort")); press.click();
  found.push(column(0), head.getAttribute("aria-sort"));
  const level = table.tHead.rows[0].cells[1].querySelector("button");
  level.click(); found.push(column(0));
  const image = document.querySelector("figure img");
  image.focus();
  image.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
  const dialog = document.querySelector("dialog");
  found.push(dialog.open, dialog.querySelector("img").src === image.src);
  dialog.addEventListener("close", () => {
    found.push(document.querySelectorAll("dialog").length, document.activeElement === image);
    const wide = document.documentElement.scrollWidth > innerWidth;
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    found.push(wide, dark, getComputedStyle(document.body).backgroundColor);
    document.title = found.join(" ");
    held.close();
  });
  dialog.querySelector("button").click();
});
</script></head>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize(
    ("flags", "colours"),
    [
        (["--window-size=1200,900"], "false rgb(255, 255, 255)"),
        (
            ["--window-size=500,900", "--blink-settings=preferredColorScheme=0"],
            "true rgb(22, 24, 28)",
        ),
    ],
)
def test_tables_sort_and_figures_are_enlarged_by_keyboard(page, tmp_path, flags, colours):
    html = page[0].read_text(encoding="utf-8")
    probed = re.sub("script-src '[^']*'", "script-src 'unsafe-inline'", html)
    title, said = opened(probed.replace("</head>", PRESSED), tmp_path, *flags)
    assert title == (
        # Seeds as written, upwards, downwards, as written; then by the level, which falls with the
        # seed; the figure enlarged; the dialog gone and the figure focused again; nothing too wide.
        f"0,1,2 0,1,2 ascending 2,1,0 descending 0,1,2  2,1,0 true true 0 true false {colours}"
    )
    assert "CONSOLE" not in said


def test_a_sentence_says_what_each_walk_comes_to(page):
    _, (section,) = page
    assert len(section.sentences) == 3
    first = section.sentences[0]
    assert first.startswith("Seed 0 ends stationary at t = ")
    assert "the angle goes from" in first
    assert "the test accuracy stays 90.0%" in first
    assert "the training loss keeps to" in first


def test_a_comparison_has_its_diagram_and_its_numbers(tmp_path):
    flow = gf.RegularizingFlow(gf.LevelSet(small_network().problem), gf.regularizers.squared_norm)
    found = comparisons.compare(
        flow, ["exponential", "rkc"], [1e-2, 1e-3], [0.01], reference="dopri5", reference_rtol=1e-6
    )
    netcdf.save_dataset(found, tmp_path / "wp.nc", overwrite=False)
    (section,) = report.report([tmp_path / "wp.nc"], tmp_path / "page.html")
    assert section.title == "walk: solvers compared"
    picture, table = section.parts
    assert picture.id == "work-precision-0"
    assert len(table.rows) == 4
    assert table.rows[0].cells[:2] == ["exponential", "1e-02"]
    error = float(found["theta_error"][0, 0, -1])
    assert table.rows[0].cells[2] == f"{error:.2e}"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_draws_every_figure_without_an_error(page, tmp_path):
    html = page[0].read_text(encoding="utf-8")
    probed = re.sub("script-src '[^']*'", "script-src 'unsafe-inline'", html)
    title, said = opened(probed.replace("</head>", PROBE), tmp_path)
    assert title == "found 3 drawn stack,penalties-figure,pca"
    assert "CONSOLE" not in said


def test_the_table_has_a_row_for_each_penalty_beside_the_walks(files):
    walks = [gf.open_trajectory(files / f"{i}.nc").load() for i in range(3)]
    with baselines.open_weight_decay(files / "baseline.nc") as baseline:
        table = report.penalty_table(walks, baseline)
        best = baselines.best_penalty(baseline, "test_loss")
        expected = baseline["test_loss"].sel(penalty=0.0).values[:, -1]
    names = [row.cells[0] for row in table.rows]
    assert names[:2] == ["walk: start", "walk: end"]
    assert [n.split()[:2] for n in names[2:]] == [["penalty", "0"], ["penalty", "0.1"]]
    assert f"penalty {best:g} †" in " ".join(names)
    column = table.head.index("test loss")
    ends = [float(ds["test_loss"][-1]) for ds in walks]
    assert table.rows[1].cells[column] == f"{np.mean(ends):.4g} ± {np.std(ends, ddof=1):.2g}"
    mean, std = expected.mean(), expected.std(ddof=1)
    assert table.rows[2].cells[column] == f"{mean:.4g} ± {std:.2g}"
    for ds in walks:
        ds.close()


@pytest.mark.parametrize(
    ("values", "name", "text"),
    [
        ([1.0, 3.0], "test_loss", "2 ± 1.4"),
        ([0.5, 0.7], "test_accuracy", "60.0 ± 14.1%"),
        ([0.25], "test_loss", "0.25"),
        ([np.nan], "test_loss", "–"),
    ],
)
def test_mean_and_standard_deviation(values, name, text):
    assert report.mean_std(values, name) == text


def test_values_of_a_file_are_text_and_never_markup(files, tmp_path):
    ds = gf.open_trajectory(files / "0.nc").load()
    ds.attrs["experiment"] = "<script>alert(1)</script>"
    gf.save_trajectory(ds, tmp_path / "a.nc")
    ds.close()
    report.report([tmp_path / "a.nc"], tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.count("<script") == 1  # the page's own
    assert "&lt;script&gt;" in html


def test_escape_codes_and_marks_of_direction_are_not_on_the_page(files, tmp_path):
    ds = gf.open_trajectory(files / "0.nc").load()
    ds.attrs |= {"status": "max_evaluations", "status_message": "A\x1b[31m\u202eB"}
    gf.save_trajectory(ds, tmp_path / "a.nc")
    ds.close()
    report.report([tmp_path / "a.nc"], tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "A�[31m�B" in html
    # Of the page's own text only the ends of its lines.
    assert {c for c in html if not c.isprintable()} == {"\n"}


def test_synthetic_images_and_early_ends_are_said(files, tmp_path):
    ds = gf.open_trajectory(files / "0.nc").load()
    ds.attrs |= {"title": "x, on synthetic images", "status": "max_evaluations"}
    gf.save_trajectory(ds, tmp_path / "a.nc")
    ds.close()
    (section,) = report.report([tmp_path / "a.nc"], tmp_path / "page.html")
    assert section.title.startswith("iris_ff, synthetic images: 1 walk,")
    assert "NOT CIFAR-10" in section.warnings[0]
    assert "Seed 0 ended early: max_evaluations" in section.warnings[1]


@pytest.mark.slow
def test_walks_of_other_settings_get_a_section_of_their_own(files, tmp_path):
    ds = gf.open_trajectory(files / "0.nc").load()
    gf.save_trajectory(ds.assign_attrs(rtol=1e-5), tmp_path / "a.nc")
    ds.close()
    paths = [files / "1.nc", tmp_path / "a.nc", files / "baseline.nc"]
    sections = report.report(paths, tmp_path / "page.html")
    assert len(sections) == 2
    alone = report.report([files / "baseline.nc"], tmp_path / "alone.html")
    assert alone[0].title == "iris_ff: weight decay"


@pytest.mark.slow
def test_walks_down_another_r_stand_apart_and_say_which(files, tmp_path):
    with gf.open_trajectory(files / "0.nc") as ds:
        ds.load()
    other = ds.assign_attrs(regularizer_name="l1", seed=7)
    gf.save_trajectory(other, tmp_path / "l1.nc")
    paths = [files / "0.nc", files / "1.nc", tmp_path / "l1.nc", files / "baseline.nc"]
    sections = report.report(paths, tmp_path / "page.html")
    assert sorted(section.title for section in sections) == [
        "iris_ff: 1 walk, bdf, rtol 0.001, float64, R = l1",
        "iris_ff: 2 walks, bdf, rtol 0.001, float64",
    ]
    tables = {
        section.title: next(part for part in section.parts if part.id.startswith("penalties"))
        for section in sections
    }
    one, two = (tables[title] for title in sorted(tables))
    assert two.head[2:4] == ["R = ‖θ‖²", "test loss"]
    assert one.head[2:5] == ["R = l1", "‖θ‖²", "test loss"]
    start = ds.isel(snapshot=0)["theta"].values
    assert one.rows[0].cells[2:4] == [f"{float(ds['regularizer'][0]):.4g}", f"{start @ start:.4g}"]
    # Of trainings ‖θ‖² alone is known; each row has as many cells as there are heads.
    assert [row.cells[2] for row in one.rows[2:]] == ["–", "–"]
    assert [row.cells[3:] for row in one.rows[2:]] == [row.cells[2:] for row in two.rows[2:]]
    assert {len(row.cells) for row in one.rows} == {len(one.head)}
    mixed = report.penalty_table([ds, other], None)
    assert mixed.head[2:4] == ["‖θ‖²", "test loss"]


def test_walks_on_several_constraints_stand_apart(tmp_path):
    problem = small_network().problem
    for seed, constraints in enumerate([problem, gf.by_class(problem)]):
        flow = gf.RegularizingFlow(gf.LevelSet(constraints), gf.regularizers.squared_norm)
        named = {"experiment": "small", "seed": seed}
        file = tmp_path / f"{seed}.nc"
        gf.walk(flow, t_end=0.1, stop=None, provenance=named, archive=file)
    sections = report.report([tmp_path], tmp_path / "page.html")
    assert [section.title for section in sections] == [
        "small: 1 walk, bdf, rtol 0.001, float64",
        "small: 1 walk, bdf, rtol 0.001, float64, 2 constraints",
    ]


def test_the_command_and_its_errors(files, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert cli.main(["report", str(files), "--out", str(page)]) == terminal.DONE
    before = page.read_bytes()
    capsys.readouterr()
    assert cli.main(["report", str(files), "--out", str(page)]) == terminal.BAD_INPUT
    assert "--force" in capsys.readouterr().err
    assert page.read_bytes() == before
    with pytest.raises(InputError, match="files="):
        report.report([], tmp_path / "b.html")
    with pytest.raises(ArchiveError, match=r"has no .nc file"):
        report.report([tmp_path], tmp_path / "b.html")
    xr.Dataset({"x": 1}).to_netcdf(tmp_path / "x.nc")
    with pytest.raises(ArchiveError, match="is not a trajectory"):
        report.report([tmp_path / "x.nc"], tmp_path / "b.html")
    with gf.open_trajectory(files / "0.nc") as ds:
        netcdf.save_dataset(gf.analysis.pca.along(ds, 2), tmp_path / "pca.nc")
    with pytest.raises(
        ArchiveError, match=r"pca\.nc is of the kind 'pca'; give walks, paths, comp"
    ):
        report.report([tmp_path / "pca.nc"], tmp_path / "b.html")
    assert not (tmp_path / "b.html").exists()


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_walks_in_few_dimensions_have_the_components_there_are(rank, tmp_path):
    """With less than three there is nothing to draw."""
    with gf.walk(small_network(), stop=None, t_end=0.3, max_snapshots=12) as ds:
        rng = np.random.default_rng(0)
        rows, columns = ds["theta"].shape
        flat = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
        gf.save_trajectory(ds.assign(theta=ds["theta"].copy(data=flat)), tmp_path / "flat.nc")
    arguments = ["report", str(tmp_path / "flat.nc"), "--out", str(tmp_path / "page.html")]
    assert cli.main(arguments) == terminal.DONE
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert ("Variance explained." in page) == (rank >= 3)
    assert (f"<td>{rank}</td>" in page) or rank < 3


@pytest.mark.slow
def test_the_same_files_give_the_same_page_in_another_process(files, tmp_path):
    """Names within a figure are drawn at random otherwise, anew by each process."""
    walk = sorted(files.glob("*.nc"))[0]
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for page in pages:
        program = [sys.executable, "-m", "geoflow", "report", str(walk), "--out", str(page)]
        subprocess.run(program, check=True, capture_output=True)
    minute = r"\d{4}-\d\d-\d\d \d\d:\d\d UTC"
    first, second = (re.sub(minute, "", page.read_text(encoding="utf-8")) for page in pages)
    assert first == second


def test_a_walk_without_the_options_of_a_solver_is_shown(files, tmp_path):
    path = tmp_path / "plain.nc"
    with gf.open_trajectory(files / "0.nc") as ds:
        gf.save_trajectory(ds.load().assign_attrs(config="{}"), path)
    assert gf.validate(path) == []
    report.report([path], tmp_path / "page.html")
    assert "iris" in (tmp_path / "page.html").read_text(encoding="utf-8")
