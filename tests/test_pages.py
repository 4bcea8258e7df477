"""What the first pages show, run as a reader would run it."""

import re
from pathlib import Path

import pytest
import torch

import geoflow as gf
from geoflow import cli

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/start.md")


def blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text[: m.start(1)].count("\n"), m.group(1)) for m in found]


@pytest.mark.parametrize("page", PAGES)
def test_its_code_runs_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    with torch.random.fork_rng(devices=[]):
        for line, code in blocks(page):
            exec(compile("\n" * line + code, page, "exec"), namespace)
    ds = namespace["ds"]
    assert ds.attrs["status"] == "stationary"
    assert ds.attrs["status"] in capsys.readouterr().out
    if page.endswith("start.md"):
        assert float(ds["test_loss"][-1]) < float(ds["test_loss"][0])
        assert gf.validate("digits.nc") == []
        assert list(Path("figures").glob("digits*.png"))


def test_the_command_of_the_start_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^    geoflow (.*)$", text, re.MULTILINE)
    assert cli.main(command.split()) == 0
    assert Path("iris.nc").is_file()
    assert len(list(Path("figures").iterdir())) > 0
