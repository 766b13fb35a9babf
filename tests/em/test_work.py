"""Joining the E-steps of a run, seen from the one that joins."""

import importlib

import emfast
from emfast.config import Config
from emfast.em.state import RunFolder

MODULE = importlib.import_module("emfast.em.work")  # which the package has a function of the same name for


def test_a_run_that_begins_anew_with_other_settings(tmp_path, monkeypatch):
    """What it makes by the old ones would be used: a shard does not say which settings it is made by."""
    joined = []

    def begin(sigma):
        RunFolder(tmp_path).claim(Config(output=str(tmp_path), sigma=sigma).to_yaml(), {"observations": str(sigma)})

    class Guest:
        def __init__(self, config, *rest):
            self.config = config
            if config.sigma == 0.2:
                begin(0.3)
                raise ValueError("the data are others than the run's")  # of which it has read half the settings

        def join(self):
            joined.append(self.config.sigma)
            if len(joined) == 1:
                begin(0.2)
            return 5

        @property
        def finished(self):
            return len(joined) == 2

    monkeypatch.setattr(MODULE, "Guest", Guest)
    monkeypatch.setattr(MODULE, "POLL", 0.0)
    begin(0.1)
    assert emfast.em.work(tmp_path) == 10
    assert joined == [0.1, 0.3]
