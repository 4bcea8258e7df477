"""``docs/cli.md``: its tables are made from the parser, and the parser says what they need."""

import argparse
import importlib.util
import re
from pathlib import Path

import pytest

from geoflow import cli
from geoflow.cli import completion, parser

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "cli.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def command_options():
    """``docs/command_options.py``, which the build of the documentation imports."""
    spec = importlib.util.spec_from_file_location("command_options", DOCS / "command_options.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", parser.COMMANDS)
def test_every_command_has_a_table_below_its_heading(command):
    (section,) = re.findall(rf"^## `geoflow {command}\b.*?(?=^## |\Z)", PAGE, re.M | re.DOTALL)
    takes = len(completion._commands(parser.whole_parser())[command]._actions) > 1  # --help
    assert (f"```{{options}} {command}\n```" in section) == takes


@pytest.mark.parametrize("command", parser.COMMANDS)
def test_every_argument_says_what_it_is_and_its_default(command):
    for action in completion._commands(parser.whole_parser())[command]._actions:
        name = action.option_strings or action.metavar
        assert action.help, name
        default = action.default
        if isinstance(default, (tuple, list)):
            default = ",".join(str(d) if isinstance(d, str) else f"{d:g}" for d in default)
        if isinstance(default, float):
            default = f"{default:g}"
        if isinstance(default, int) and not isinstance(default, bool):
            assert f"({default:,})" in action.help or f"({default})" in action.help, name
        elif isinstance(default, str) and default != "==SUPPRESS==":
            assert f"({default})" in action.help, name


def test_a_table_has_the_forms_and_the_words_of_the_help(command_options, capsys):
    rows = command_options.rows("run")
    assert (["--seed N"], rows[3][1]) == rows[3]
    assert (["--force"], "replace FILE.nc where it exists; without it, an error") in rows
    assert ["--angle DEGREES", "--degrees DEGREES"] in [forms for forms, _ in rows]
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for forms, text in rows:
        assert " ".join(text.split()) in printed, forms


@pytest.mark.parametrize("command", parser.COMMANDS)
def test_every_argument_has_a_row(command, command_options):
    rows = {tuple(forms): text for forms, text in command_options.rows(command)}
    actions = completion._commands(parser.whole_parser())[command]._actions
    shown = [a for a in actions if a.help != argparse.SUPPRESS]
    assert len(rows) == len(shown) - 1  # --help has none
    assert all(text for text in rows.values())


def test_the_page_names_no_option_that_is_none():
    commands = completion._commands(parser.whole_parser()).values()
    known = {o for child in commands for a in child._actions for o in a.option_strings}
    named = set(re.findall(r"`(--[a-z][a-z-]*)", PAGE)) - {"--nproc-per-node"}
    assert named - known == set()
