"""The bar of a walk where standard error is no terminal: shown in a notebook, and only there."""

import threading

import nbclient
import nbformat
import pytest
import torch
from tqdm.std import TqdmDefaultWriteLock

import geoflow as gf
from geoflow.system.progress import progress_bar

WALK = """
import torch
import geoflow as gf

circle = gf.Problem.from_function(lambda x: x @ x, torch.tensor([3.0, 4.0], dtype=torch.float64))
flow = gf.RegularizingFlow(gf.LevelSet(circle), lambda x: x[0])
ds = gf.walk(flow, "dopri5", t_end=0.5, stop=None, progress={progress})
print("came to", float(ds["time"][-1]))
"""


def outputs_of(source):
    """What a kernel of this Python shows of a notebook of one cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return notebook.cells[0].outputs


def text(outputs, name):
    return "".join(o.text for o in outputs if o.output_type == "stream" and o.name == name)


@pytest.mark.slow
@pytest.mark.parametrize("progress", [True, False])
def test_a_notebook_shows_the_bar_of_a_walk(progress):
    outputs = outputs_of(WALK.format(progress=progress))
    assert {o.output_type for o in outputs} == {"stream"}
    assert text(outputs, "stdout") == "came to 0.5\n"
    shown = text(outputs, "stderr").strip()
    if not progress:
        assert shown == ""
        return
    # Each state of the bar overwrites the one before; nothing else is there, no warning either.
    states = [state.strip() for state in shown.split("\r") if state.strip()]
    assert [s for s in states if not s.startswith("walk: ")] == []
    assert "eval" in states[-1]
    assert "angle" in states[-1]


def test_no_bar_where_there_is_no_terminal(capsys):
    for _ in progress_bar(True, range(3), "walk"):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("closed", [False, True])
def test_no_bar_where_there_is_no_standard_error(monkeypatch, tmp_path, closed):
    # None is what Python has where its descriptor is closed, as for a daemon.
    nowhere = None
    if closed:
        nowhere = (tmp_path / "errors").open("w")
        nowhere.close()
    monkeypatch.setattr("sys.stderr", nowhere)
    circle = gf.Problem.from_function(lambda x: x @ x, torch.tensor([3.0, 4.0]))
    flow = gf.RegularizingFlow(gf.LevelSet(circle), lambda x: x[0])
    ds = gf.walk(flow, "dopri5", t_end=0.5, stop=None, progress=True)
    assert ds.attrs["status"] == "t_end"


def test_a_bar_waits_for_no_lock_of_a_process_that_was_killed():
    """That of tqdm is shared by forked processes, and held for ever by one that dies with it."""
    shared = TqdmDefaultWriteLock().mp_lock
    if shared is None:
        pytest.skip("there are no semaphores here")
    made = threading.Thread(target=lambda: progress_bar(False, total=1).close())
    made.daemon = True
    with shared:
        made.start()
        made.join(30)
        assert not made.is_alive()
