"""One run in a folder at a time: who holds it is refused to others, who died is replaced."""

import json
import os
import subprocess
import sys
import time

import pytest

from emfast._process import machine
from emfast.em import lock
from emfast.em.lock import NAME, held


def write(folder, **who):
    folder.mkdir(exist_ok=True)
    (folder / NAME).write_text(json.dumps(who))


def test_a_folder_is_held_once(tmp_path):
    with held(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
        with pytest.raises(RuntimeError, match=f"got process {os.getpid()} on .*. Wait for it"), held(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / NAME).exists()  # the one refused takes nothing away
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]
    with held(tmp_path / "run"):
        pass


def test_an_empty_folder_is_not_left_behind(tmp_path):
    with pytest.raises(ValueError, match="first"), held(tmp_path / "run"):
        raise ValueError("first")
    assert not (tmp_path / "run").exists()


def test_a_killed_process_is_replaced_at_once(tmp_path):
    code = "import os, sys; from emfast.em import lock; held = lock.held(sys.argv[1]); held.__enter__(); os.abort()"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL).returncode == -6
    assert (tmp_path / NAME).exists()
    begin = time.monotonic()
    with held(tmp_path):
        pass
    assert time.monotonic() - begin < lock.PATIENCE / 2


@pytest.mark.parametrize("content", ["", "[]", "{", '{"host": 1}'])
def test_a_damaged_file_is_replaced_when_nobody_touches_it(content, tmp_path):
    (tmp_path / NAME).write_text(content)
    with held(tmp_path, patience=0.2):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()


def test_a_process_on_another_machine_is_known_by_its_touch(tmp_path, monkeypatch):
    write(tmp_path, host="elsewhere", process=1, identity="01234567.1.1", token="")
    times = iter(range(1, 100))
    monkeypatch.setattr(lock, "_touched", lambda path: next(times))
    with pytest.raises(RuntimeError, match="got process 1 on elsewhere"), held(tmp_path, patience=0.5):
        pass
    monkeypatch.setattr(lock, "_touched", lambda path: 1)
    with held(tmp_path, patience=0.2):
        pass


def test_a_number_that_another_process_has_by_now_is_no_holder(tmp_path):
    write(tmp_path, host="here", process=os.getpid(), identity=f"{machine()}.{os.getpid()}.0", token="")
    with held(tmp_path):
        pass


def test_the_holder_touches_its_file(tmp_path):
    with held(tmp_path / "run", beat=0.01):
        path = tmp_path / "run" / NAME
        os.utime(path, (0, 0))
        for _ in range(200):
            if path.stat().st_mtime > 1:
                break
            time.sleep(0.01)
        assert path.stat().st_mtime > 1
