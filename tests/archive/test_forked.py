"""What is computed block by block is computed in the thread that writes it, in any process."""

import os
import signal

import dask
import dask.array as da
import pytest

import crashes
import geoflow as gf
import invariants


@pytest.fixture
def no_threads():
    """Refuse whatever would be computed by threads of Dask."""

    def refused(graph, keys, **options):
        raise AssertionError("computed elsewhere")

    with dask.config.set(scheduler=refused):
        yield
        # The setting of the process is back.
        assert dask.config.get("scheduler") is refused


def test_a_walk_is_archived_resumed_and_saved_in_its_own_thread(no_threads, tmp_path):
    path = tmp_path / "walk.nc"
    crashes.walk("rk4", path, t_end=0.02).close()
    with crashes.resume(path, t_end=0.04) as ds:
        gf.save_trajectory(ds.chunk(), tmp_path / "saved.nc")
    assert gf.validate(tmp_path / "saved.nc") == []


def _fork_and_walk(connection, folder):
    with crashes.walk("rk4", folder / "parent.nc", t_end=0.02) as whole:
        # Whoever else has used them: a forked process has not got them.
        da.ones(4, chunks=1).sum().compute(scheduler="threads")
        child = os.fork()
        if not child:
            signal.alarm(60)
            with crashes.walk("rk4", folder / "child.nc", t_end=0.02) as ds:
                os._exit(not invariants.same(ds, whole))
        connection.send(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_walk_in_a_forked_process_is_archived_and_ends(tmp_path):
    process, receive = crashes.start(_fork_and_walk, tmp_path)
    assert receive.recv() == 0
    process.join()
