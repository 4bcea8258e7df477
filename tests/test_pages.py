"""What the pages show, run as a reader would run it; and that their pictures have words."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import geoflow as gf
from geoflow import cli
from geoflow.cli import completion, parser
from geoflow.cli.terminal import BAD_INPUT, DONE, ENDED_EARLY
from geoflow.trajectories import schema

ROOT = Path(__file__).parents[1]
START = "docs/start.md"
# Pages whose blocks stand alone, and those whose blocks go on from the first page's.
ALONE = ("README.md", START)
GO_ON = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs" / "howto").glob("*.md"))
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
GALLERY = sorted((ROOT / "docs" / "examples").glob("*.py"))
# Not commands but forms of them.
OVERVIEW = ("EXPERIMENT", "FILE.nc", "FILE.py:FUNCTION", "A.nc", "SLICE.nc", "SHELL")


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page):
    text = text_of(page)
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text[: m.start(1)].count("\n"), m.group(1)) for m in found]


def run(page, namespace):
    for line, code in blocks(page):
        exec(compile("\n" * line + code, page, "exec"), namespace)


def commands(page):
    """Every line that a reader types after a prompt, without what is said of it."""
    found = re.findall(r"^    geoflow (.*)$", text_of(page), re.MULTILINE)
    typed = [shlex.split(re.split(r"\s{2,}| > ", line)[0]) for line in found]
    return [c for c in typed if not any(word in OVERVIEW or "…" in word for word in c)]


def of_several_processes(page):
    found = re.findall(r"^    torchrun (.*?)(?:\s{2,}.*)?$", text_of(page), re.MULTILINE)
    return [line.split() for line in found]


@pytest.mark.parametrize("page", ALONE)
def test_its_code_runs_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    with torch.random.fork_rng(devices=[]):
        run(page, namespace)
    ds = namespace["ds"]
    assert ds.attrs["status"] == "stationary"
    assert ds.attrs["status"] in capsys.readouterr().out
    if page == START:
        assert float(ds["test_loss"][-1]) < float(ds["test_loss"][0])
        assert gf.validate("digits.nc") == []
        assert list(Path("figures").glob("digits*.png"))


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """What the first page leaves, names and files, for the pages that go on from it."""
    folder = tmp_path_factory.mktemp("started")
    namespace = {"__name__": "page"}
    with (
        contextlib.chdir(folder),
        torch.random.fork_rng(devices=[]),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        run(START, namespace)
    return folder, namespace


@pytest.mark.parametrize("page", [p for p in GO_ON if not p.endswith("sweep.md")])
def test_its_code_goes_on_from_the_first_page(page, started, monkeypatch):
    folder, namespace = started
    monkeypatch.chdir(folder)
    assert f"[Ten minutes]({'../start.md'})" in text_of(page)
    run(page, dict(namespace))


@pytest.mark.slow
def test_the_sweep_of_its_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    run("docs/howto/sweep.md", namespace)
    assert [o.status for o in namespace["outcomes"]] == ["stationary", "stationary"]
    assert namespace["runs"].sizes["run"] == 2


def test_the_command_of_the_start_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (command,) = commands(START)
    assert cli.main(command) == 0
    assert Path("iris.nc").is_file()
    assert len(list(Path("figures").iterdir())) > 0


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one(page):
    for command in commands(page):
        parser._parser(command).parse_args(command)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_a_sentence_is_one(page):
    children = completion._commands(parser.whole_parser())
    for name, rest in re.findall(r"`geoflow ([a-z]+)([^`]*)`", text_of(page)):
        known = {o for a in children[name]._actions for o in a.option_strings}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, f"geoflow {name}{rest}"


# What would take hours for a reader of the tests, and is as good a test when it is short: a command
# as it stands, or all of a name.
SHORTER = {
    "bench": ["--max-evaluations", "60"],
    "baseline": ["--penalties", "0,0.01", "--runs", "2", "--epochs", "3"],
    "sweep": ["--workers", "1"],
    "compare": ["--times", "0.02", "--runs", "1", "--reference", "bdf"],
    "predictions": ["--snapshots=0,-1"],
    "spectrum": ["--snapshots=0,-1", "--eigenvalues", "2", "--probes", "2"],
    "slice": ["--points", "7"],
    "animate": ["--frames", "3"],
    "run mnist_ff --regularizer l1:epsilon=0.001,tensors=*.weight": ["--t-end", "0.002"],
    "run mnist_ff --regularizer 1.0*squared_norm + 0.1*margin:sign=-1": ["--t-end", "0.002"],
    "path mnist_ff --levels-to 0.084 --points 10 --out path.nc": ["--points=2", "--degrees=150"],
}
ENDS = {
    "run iris_ff --max-evaluations 60 --out cut.nc": ENDED_EARLY,
    "resume iris.nc": BAD_INPUT,  # there was no crash to go on after
}
ELSEWHERE = ("--scheduler",)  # a cluster that the reader has
# What a page takes for granted.
BEFORE = {"docs/path.md": "baseline mnist_ff --penalties 0 --runs 1 --epochs 1 --out decay.nc"}
# Pages with a problem of the reader's own in a file.
OWN = "# mine.py\n"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != START and commands(page)])
def test_its_commands_run_in_their_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _, code in blocks(page):
        if code.startswith(OWN):
            Path("mine.py").write_text(code, encoding="utf-8")
    if page in BEFORE:
        assert cli.main(BEFORE[page].split()) == DONE
    for command in commands(page):
        if not any(word in ELSEWHERE for word in command):
            text = " ".join(command)
            shorter = SHORTER.get(text, SHORTER.get(command[0], []))
            assert cli.main([*command, *shorter]) == ENDS.get(text, DONE), text


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if of_several_processes(page)])
def test_its_commands_of_several_processes_run_in_their_order(page, tmp_path):
    for command in of_several_processes(page):
        end = ["--t-end", "0.003" if "resume" in command else "0.002"]
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *command, *end],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
        )
        assert gf.validate(next(tmp_path.glob("*.nc"))) == []


def test_every_command_that_is_substituted_is_one_of_a_page():
    shown = [" ".join(command) for page in PAGES for command in commands(page)]
    names = {text.split()[0] for text in shown}
    for text in SHORTER:
        assert text in shown or text in names, text
    assert set(ENDS) <= set(shown)
    assert set(BEFORE) <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_has_words_and_is_there(page):
    for words, target in re.findall(r"!\[(.*?)\]\((.*?)\)", text_of(page), re.DOTALL):
        assert len(words.split()) >= 4, f"{target}: {words!r}"
        assert (ROOT / page).parent.joinpath(target).is_file(), target


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_page_and_a_heading(page):
    for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"https?:", target):
            continue
        name, _, heading = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        if "/gallery/" in str(file):  # made by the build of the documentation
            file = ROOT / "docs" / "examples" / Path(name).with_suffix(".py").name
            file = file.with_name("GALLERY_HEADER.rst") if file.stem == "index" else file
        assert file.is_file(), target
        if heading:
            found = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {slug(title) for title in found}, target


def slug(title):
    """Anchor of a heading, as GitHub and the documentation make it."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).lower())
    return kept.strip().replace(" ", "-")


@pytest.mark.parametrize("example", GALLERY, ids=lambda path: path.stem)
def test_every_example_of_the_gallery_has_a_title_and_words_for_its_figures(example):
    text = example.read_text(encoding="utf-8")
    title, line = text.splitlines()[1:3]
    assert set(line) == {"="}
    assert len(line) >= len(title)
    drawn = re.findall(r"^figure(?:, \w+)? = ", text, re.MULTILINE)
    alts = re.findall(r'^# sphinx_gallery_alt = "(.+)"$', text, re.MULTILINE)
    assert len(alts) == len(drawn) >= 1
    assert all(len(words.split()) >= 6 for words in alts)


def test_the_gallery_is_as_large_as_the_first_page_says():
    assert len(GALLERY) == 13
    assert "thirteen short programs" in text_of("docs/index.md")


@pytest.mark.parametrize("page", PAGES)
def test_arguments_in_formulas_have_braces(page):
    # docutils takes the 12 of \frac12 d for one number, and d for the denominator.
    assert re.findall(r"\\[td]?frac\s*[^{\s].{,10}|\\sqrt\s*\d\d.{,10}", text_of(page)) == []


def test_the_page_of_statuses_has_every_status_once():
    page = text_of("docs/howto/statuses.md")
    table = page.split("|---|---|---|\n")[1].split("\n\n")[0]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()]
    assert sorted(status.strip("`") for status, _, _ in rows) == sorted(schema.STATUSES)
    assert all(cause and remedy for _, cause, remedy in rows)
    # The first ones are those of walks that came to their goal, as the page says of exit statuses.
    assert {status.strip("`") for status, *_ in rows[: len(schema.REACHED)]} == set(schema.REACHED)
    assert "the first four statuses" in " ".join(page.split())


def test_the_schema_has_every_status():
    table = text_of("docs/schema.md").split("| status | the walk ended because |")[1]
    found = re.findall(r"^\| `(\w+)` \|", table.split("\n\n")[0], re.MULTILINE)
    assert sorted(found) == sorted(schema.STATUSES)
