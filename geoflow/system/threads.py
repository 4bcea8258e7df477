"""NumPy's threads, out of the way of torch's."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController

# The number of threads belongs to the process: one block at a time lowers and restores it.
_free = threading.Lock()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep the BLAS of NumPy and SciPy to one thread in the block, in the whole process.

    Solvers give it matrices of a few dozen rows. OpenBLAS divides even those among threads of its
    own, which then wait for more work by spinning: between two such calls they hold the processors
    that torch's threads need, and a walk takes ten times as long. A block within another, or in a
    second thread meanwhile, leaves the limit to that one.
    """
    if not _free.acquire(blocking=False):
        yield
        return
    try:
        with _libraries().limit(limits=1):
            yield
    finally:
        _free.release()


@functools.cache
def _libraries() -> ThreadpoolController:
    # Those with a pool of their own: a library that shares torch's is left as it is. Solvers have
    # loaded all by now.
    return ThreadpoolController().select(threading_layer="pthreads")
