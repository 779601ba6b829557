import errno
import multiprocessing
import os
import signal

import pytest
from filelock import FileLock

from fl_sim.storage.lock import holder, locked
from fl_sim.study.settings import SettingsError


def hold(root, held):
    with locked([root]):
        held.set()
        signal.pause()


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path, held), daemon=True)
    process.start()
    assert held.wait(120)
    yield process
    process.kill()


def test_a_second_writer_is_refused_and_a_killed_one_does_not_block(tmp_path, other):
    refused = pytest.raises(SettingsError, match=f"out = .*process {other.pid} since .*is writing")
    with refused, locked([tmp_path / "free", tmp_path]):
        pass
    assert holder(tmp_path).startswith(f"process {other.pid} since")
    assert holder(tmp_path / "free") == ""  # the first of two is not kept when the second is taken
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert holder(tmp_path) == ""
    with locked([tmp_path]):
        pass


def test_who_writes_is_said_where_the_disk_is_read_only(tmp_path, other, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert holder(tmp_path).startswith(f"process {other.pid} since")
    other.kill()
    other.join()
    assert holder(tmp_path) == ""


def test_who_holds_nothing_is_nobody(tmp_path):
    assert holder(tmp_path / "missing") == ""
    assert holder(tmp_path) == ""
