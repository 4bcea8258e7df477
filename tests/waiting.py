"""Threads in tests: which wait for a lock is seen, and not slept for."""

import threading

from geoflow.problems import alone

TIMEOUT = 60


def start(function, name=None):
    """A thread that keeps no run of the tests from ending."""
    thread = threading.Thread(target=function, name=name, daemon=True)
    thread.start()
    return thread


def join(*threads):
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "it waits for ever"


def wait(event):
    assert event.wait(TIMEOUT), "it waits for ever"


def tell_of_waits(monkeypatch, tell):
    """Have a function called when a thread is about to wait for a lock of an evaluation's."""
    ask = alone.Lock._ask

    def asked(self, thread):
        ask(self, thread)
        if self._holder is not None:
            tell()

    monkeypatch.setattr(alone.Lock, "_ask", asked)


class Told:
    """A lock in place of a plain one that says when a thread is about to wait for it."""

    def __init__(self, tell):
        self._lock, self._tell = threading.RLock(), tell

    def __enter__(self):
        if not self._lock.acquire(blocking=False):
            self._tell()
            assert self._lock.acquire(timeout=TIMEOUT)

    def __exit__(self, *error):
        self._lock.release()
