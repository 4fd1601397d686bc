"""Looking from a thread: as long as it is meant to, once more at the end, and never in vain."""

import threading

import pytest

from cluster.polling import polling


def test_it_looks_until_the_end_and_once_more():
    seen, looked, done = [], threading.Event(), False

    def look() -> None:
        seen.append(done)
        looked.set()

    with polling(look, 0.001):
        assert looked.wait(60)
        done = True
    assert seen[0] is False
    assert seen[-1] is True
    count = len(seen)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("polling")]
    assert len(seen) == count


def test_a_block_that_is_over_at_once_is_looked_at():
    seen = []
    with polling(lambda: seen.append("look"), 60):
        pass
    assert seen == ["look"]


def test_what_the_look_raises_is_not_lost():
    def fail() -> None:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"), polling(fail, 60):
        pass


def test_what_the_block_raises_comes_first():
    """And what there was to see before it is seen."""
    seen = []
    with pytest.raises(KeyError), polling(lambda: seen.append("look"), 60):
        raise KeyError("of the block")
    assert seen == ["look"]

    def fail() -> None:
        raise OSError("of the look")

    with pytest.raises(KeyError), polling(fail, 60):
        raise KeyError("of the block")
