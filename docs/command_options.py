"""Tables of the command line's options, made from the parser that reads them."""

import argparse

from docutils import nodes
from docutils.parsers.rst import Directive

from geoflow.cli.completion import _commands
from geoflow.cli.parser import COMMANDS, whole_parser


def actions(command):
    """Return what a command takes, in the order of its ``--help``."""
    taken = _commands(whole_parser())[command]._actions
    hidden = argparse.SUPPRESS  # what --help leaves out, too
    return [a for a in taken if a.help != hidden and "--help" not in a.option_strings]


def rows(command):
    """Return each argument of a command as it is typed, and what it means."""
    return [(typed(a), meaning(a)) for a in actions(command)]


def typed(action):
    """Return the forms of an argument, as a reader types them."""
    value = action.metavar or "|".join(action.choices or ()) or action.dest.upper()
    value += " …" if action.nargs in ("+", "*") else ""
    if not action.option_strings:
        return [value]
    return [o if action.nargs == 0 else f"{o} {value}" for o in action.option_strings]


def meaning(action):
    """Return what its ``--help`` says of an argument."""
    text = (action.help or "") % {**vars(action), "prog": "geoflow"}
    return f"{text}; required" if action.option_strings and action.required else text


class Options(Directive):
    """``{options} COMMAND``: the arguments of a command, a row each."""

    required_arguments = 1

    def run(self):
        """Make the table."""
        return [table(("option", "meaning"), rows(self.arguments[0]))]


class Commands(Directive):
    """``{commands}``: the commands, a row each."""

    def run(self):
        """Make the table."""
        said = [([name], text) for name, text in COMMANDS.items()]
        return [table(("command", "what it does"), said)]


def table(heads, body):
    """Make a table of two columns, the first of them literals."""
    group = nodes.tgroup(cols=2)
    group += [nodes.colspec(colwidth=1), nodes.colspec(colwidth=2)]
    group += nodes.thead("", row(*(nodes.paragraph(text=head) for head in heads)))
    lines = []
    for forms, text in body:
        words = nodes.paragraph(text=text, support_smartquotes=False)  # dashes stay dashes
        typed_forms = (nodes.line("", "", nodes.literal(text=form)) for form in forms)
        lines.append(row(nodes.line_block("", *typed_forms), words))
    group += nodes.tbody("", *lines)
    return nodes.table("", group)


def row(*cells):
    """Make a row of a table."""
    return nodes.row("", *(nodes.entry("", cell) for cell in cells))
