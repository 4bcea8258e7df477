"""``geoflow completion``: what a shell offers where the key is pressed."""

import shutil
import subprocess

import pytest

from geoflow import cli
from geoflow.cli import completion, parser

BASH = shutil.which("bash")
# What bash itself does when the key is pressed after these words.
PRESS = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
function=$(complete -p geoflow | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function geoflow "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "geoflow"
    with path.open("w", encoding="utf-8") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", file)
        assert cli.main(["completion", "bash"]) == 0
    return path


@pytest.mark.skipif(BASH is None, reason="no bash here")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ru"], {"run"}),
        (["run", "mn"], {"mnist_ff", "mnist_conv"}),
        (["run", "iris_ff", "--sol"], {"--solver"}),
        (["run", "iris_ff", "--dtype", ""], {"float64", "float32"}),
        (["path", "iris_ff", "--lev"], {"--levels", "--levels-to"}),
        (["info", "wal"], {"walk.nc"}),
        (["completion", "z"], {"zsh"}),
    ],
)
def test_bash_offers_what_begins_like_the_word(words, offered, script, tmp_path):
    (tmp_path / "walk.nc").touch()
    done = subprocess.run(
        [BASH, "--norc", "-c", PRESS, "press", script, "geoflow", *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert set(done.stdout.split()) == offered, done.stderr


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_command_and_option_is_in_the_script_of_each_shell(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for name, child in completion._commands(parser.whole_parser()).items():
        assert name in text
        for action in child._actions:
            for option in action.option_strings:
                # tcsh's and fish's leave the dashes to the shell.
                assert option.lstrip("-") in text, (name, option)
