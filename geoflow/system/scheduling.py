"""Where Dask's arrays are computed."""

from __future__ import annotations

from contextlib import AbstractContextManager

from geoflow.system.process import Setting


def _synchronous() -> AbstractContextManager[object]:
    # Imported here, as importing it takes longer than all of geoflow.
    import dask

    return dask.config.set(scheduler="synchronous")


# One block after the other, in the thread that asks for them. Threads of Dask would read ahead of
# what is written, and wait for a lock that is held here; and a forked process has none of them,
# but waits for them for ever.
in_this_thread = Setting(_synchronous)
