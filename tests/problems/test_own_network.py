"""``docs/own-network.md``: its code runs, and its tables say what the tests of networks have."""

import re
from pathlib import Path

import pytest
import torch
from networks import CASES
from test_networks import REFUSED, SPECTRUM_BY_DIFFERENCES

from geoflow import cli
from geoflow.cli.terminal import DONE
from geoflow.errors import InputError
from geoflow.experiments import registry

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "own-network.md"
TEXT = PAGE.read_text(encoding="utf-8")
FILE = "# mine.py\n"


def blocks():
    """Every fenced block of Python, and the line of the page that it begins on."""
    found = re.finditer(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    return [(TEXT[: m.start(1)].count("\n"), m.group(1)) for m in found]


def rows(table):
    """Cells of a table's rows, the header left out."""
    after = TEXT.split(f"<!-- table: {table} -->\n\n")[1].split("\n\n")[0]
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in after.splitlines()]
    return cells[2:]


@pytest.fixture
def _seeded(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.usefixtures("_seeded")
def test_every_block_runs_in_the_order_of_the_page(capsys):
    namespace = {"__name__": "own_network"}
    for line, code in blocks():
        if not code.startswith(FILE):
            # With the page's own lines in a traceback.
            exec(compile("\n" * line + code, str(PAGE), "exec"), namespace)
    assert capsys.readouterr().out


def test_every_case_is_ten_lines_at_most():
    assert len(blocks()) > 20
    for line, code in blocks():
        lines = [text for text in code.splitlines() if text and text != FILE.strip()]
        assert len(lines) <= 10, f"line {line + 1}: {len(lines)} lines of code"


@pytest.mark.usefixtures("_seeded")
def test_the_commands_run_on_the_file_of_the_page(tmp_path, monkeypatch, capsys):
    (file,) = [code for _, code in blocks() if code.startswith(FILE)]
    (tmp_path / "mine.py").write_text(file)
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    geoflow (.*)$", TEXT, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert cli.main(command.split()) == DONE
    table = capsys.readouterr().out
    assert "hessian" in table
    assert "tangent" in table


def test_the_table_of_networks_has_every_case():
    assert [name for name, *_ in rows("networks.CASES")] == [n.replace("_", " ") for n in CASES]


@pytest.mark.parametrize("row", rows("networks.CASES"), ids=lambda row: row[0])
def test_a_network_is_made_as_the_table_says(row):
    name, made, spectrum = row
    name = name.replace(" ", "_")
    case = CASES[name]()
    problem = case.problem()
    how, *keywords = made.replace("`", "").split(", ")
    assert keywords == list(case.keywords)
    try:
        assert problem.n_outputs > 0
        assert how == "from_module"
    except InputError:
        assert how == "from_batches"
    assert spectrum == ("by differences" if name in SPECTRUM_BY_DIFFERENCES else "exact")


def test_the_table_of_refusals_has_every_case():
    assert [what for what, _ in rows("test_networks.REFUSED")] == list(REFUSED)


@pytest.mark.parametrize("row", rows("test_networks.REFUSED"), ids=lambda row: row[0])
def test_a_refusal_says_what_the_table_has(row):
    what, message = row
    make, _ = REFUSED[what]
    expected = ".+".join(re.escape(part) for part in message.replace("`", "").split("…"))
    with pytest.raises(InputError, match=f"^{expected}$"):
        make()
