"""The types of what a user calls: a user's script passes a strict check, mistakes do not."""

import subprocess
import sys
from pathlib import Path

import pytest

import typed_user
from geoflow.experiments import registry

ROOT = Path(__file__).parents[1]
SCRIPT = Path(typed_user.__file__)
# A line of the script, what a user may write in its place by mistake, and what mypy calls that.
MISTAKES = (
    ("gf.load_into(module, ds, snapshot=-1)", "gf.load_into(ds, module)", "arg-type"),
    ("t_end=0.01,", 't_end="soon",', "arg-type"),
    ("gf.LevelSet(problem, level=None", "gf.LevelSet(problem, levels=None", "call-arg"),
)


def mypy(script):
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_the_script_does_what_it_says(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})
    assert typed_user.main() == "t_end []"


def test_arrays_texts_and_mappings_are_taken(tmp_path):
    assert typed_user.of_arrays(str(tmp_path / "walk.nc")) == ["t_end", "t_end", "complete"]
    assert set(typed_user.prepared(0).observables) == {"test_loss"}


@pytest.mark.slow
def test_a_user_s_script_passes_mypy_strict():
    done = mypy(SCRIPT)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_mistakes_are_found(tmp_path):
    text = SCRIPT.read_text(encoding="utf-8")
    for right, wrong, _ in MISTAKES:
        assert text.count(right) == 1, right
        text = text.replace(right, wrong)
    script = tmp_path / "mistaken.py"
    script.write_text(text, encoding="utf-8")
    done = mypy(script)
    found = [line for line in done.stdout.splitlines() if "error:" in line]
    assert [m[2] for m in MISTAKES if not any(f"[{m[2]}]" in f for f in found)] == []
    assert len(found) >= len(MISTAKES), done.stdout
