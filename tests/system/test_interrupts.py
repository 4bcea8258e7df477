"""Ctrl-C during what must be done whole."""

import signal
import threading

import pytest

from geoflow.system import interrupts


def pressed(done, times=1):
    with interrupts.put_off():
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        done.append("block")
    done.append("after")


def test_ctrl_c_takes_effect_at_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt):
        pressed(done)
    assert done == ["block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_handler_that_was_there_is_called_once_and_is_back():
    done = []

    def handler(number, frame):
        assert number == signal.SIGINT
        assert frame is not None
        done.append("handler")

    signal.signal(signal.SIGINT, handler)
    pressed(done, times=3)
    assert done == ["block", "handler", "after"]
    assert signal.getsignal(signal.SIGINT) is handler
    pressed(done, times=0)
    assert done[3:] == ["block", "after"]


def test_an_error_in_the_block_leaves_the_handler_as_it_was():
    with pytest.raises(ZeroDivisionError), interrupts.put_off():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def pressed_and_raises():
    with interrupts.put_off():
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError


def test_ctrl_c_in_a_block_that_raises_is_not_lost():
    with pytest.raises(KeyboardInterrupt) as caught:
        pressed_and_raises()
    # The error is not lost either.
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_does_not_raise_lets_the_error_of_the_block_through():
    done = []
    signal.signal(signal.SIGINT, lambda *details: done.append(details))
    with pytest.raises(ZeroDivisionError):
        pressed_and_raises()
    assert len(done) == 1


def test_where_ctrl_c_is_ignored_it_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    done = []
    pressed(done)
    assert done == ["block", "after"]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_another_thread_is_never_interrupted():
    done = []

    def block():
        with interrupts.put_off():
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert done == [signal.default_int_handler]
