"""Tuning, with a timer that knows the answer."""

import json

import pytest
import torch
from contracts import replace_way

from emfast.compilation.compiling import Layout
from emfast.compilation.tune import tune
from emfast.dispatch import way

tuned_module = pytest.importorskip("emfast.kernels._tuned", reason="needs triton (the test extra installs it)")
CALL = ("residual_sum", (Layout(torch.float32, (2, 4), (4, 1), 0), None, 2.0))
KEY = "residual_sum 4"


@pytest.fixture
def configuration(monkeypatch):
    """What the launcher under test was configured with last; one of 64 or more is wrong, one of 256 fails."""
    last = {}

    def launch(x, *rest):
        row = last["row"] = tuned_module.tuned("residual_sum", x, (x.element_size(),), (8, 4))
        if row[0] == 256:
            raise RuntimeError("out of resource")
        return x + (row[0] >= 64)

    replace_way(monkeypatch, "residual_sum", "triton", compute=launch)
    return last


def search(configuration, folder, cost):
    """Tunes with the times that `cost` makes of a configuration."""

    def timer(run):
        run()
        return cost(*configuration["row"])

    return tune([CALL], folder, device="cpu", timer=timer)


def test_it_climbs_to_the_fastest_right_configuration(configuration, tmp_path):
    found = search(configuration, tmp_path, lambda size, warps: 100 / size + abs(warps - 1))
    assert found == {KEY: [32, 1]}
    assert json.loads((tmp_path / tuned_module.FILE).read_text()) == {"version": 2, "gpus": {"cpu": found}}


def test_the_table_stays_where_nothing_is_faster(configuration, tmp_path):
    assert search(configuration, tmp_path, lambda size, warps: 1 + abs(size - 8) / 100) == {}


def test_a_file_keeps_what_it_knows_of_others(configuration, tmp_path):
    file = tmp_path / tuned_module.FILE
    known = {"cpu": {"other": [1]}, "another GPU": {KEY: [2, 2]}}
    file.write_text(json.dumps({"version": tuned_module.VERSION, "gpus": known}))
    search(configuration, tmp_path, lambda size, warps: 1 / warps)
    known = json.loads(file.read_text())["gpus"]
    assert known["another GPU"] == {KEY: [2, 2]}
    assert known["cpu"]["other"] == [1]
    assert KEY in known["cpu"]


@pytest.mark.parametrize("variable", ["EMFAST_TUNED", "TRITON_CACHE_DIR"])
def test_launchers_read_the_file(variable, tmp_path, monkeypatch):
    file = tmp_path / tuned_module.FILE
    file.write_text(json.dumps({"version": tuned_module.VERSION, "gpus": {"this GPU": {KEY: [2, 2]}}}))
    for name in ("EMFAST_TUNED", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(file if variable == "EMFAST_TUNED" else tmp_path))
    monkeypatch.setattr(tuned_module, "gpu", lambda index: "this GPU")
    tuned_module.table.cache_clear()
    try:
        with torch._subclasses.fake_tensor.FakeTensorMode():
            x = torch.empty(2, device="cuda")
        assert tuned_module.tuned("residual_sum", x, (4,), (8, 4)) == (2, 2)
        assert tuned_module.tuned("residual_sum", x, (2,), (8, 4)) == (8, 4)
    finally:
        tuned_module.table.cache_clear()


@pytest.mark.parametrize("content", [{"this GPU": {KEY: [2, 2]}}, {"version": 0, "gpus": {}}])
def test_a_file_of_another_version_is_refused(content, configuration, tmp_path, monkeypatch):
    file = tmp_path / tuned_module.FILE
    file.write_text(json.dumps(content))
    monkeypatch.setenv("EMFAST_TUNED", str(file))
    tuned_module.table.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"^kernels: expected .*tuned\.json to be of version 2, got .*--tune"):
            tuned_module.tuned("residual_sum", torch.empty(2), (4,), (8, 4))
        search(configuration, tmp_path, lambda size, warps: 1 / warps)  # writes another
        tuned_module.table.cache_clear()
        assert list(tuned_module.table()) == ["cpu"]
    finally:
        tuned_module.table.cache_clear()


@pytest.mark.parametrize(("native", "expected"), [(9.0, True), (11.0, None)])
def test_torchs_own_attention_is_taken_where_it_is_faster(native, expected, tmp_path, monkeypatch):
    for name in ("packed_attention", "packed_attention_backward"):
        replace_way(monkeypatch, name, "triton", compute=way(name, "reference").compute)

    def timer(run):
        with torch.profiler.profile() as profile:
            run()
        return native if any("scaled_dot_product" in event.name for event in profile.events()) else 10.0

    call = ("packed_attention", (Layout(torch.bfloat16, (3, 2, 4, 16, 8), (32, 1536, 8, 96, 1), 0), 0.5))
    found = tune([call], tmp_path, device="cpu", timer=timer)
    assert found.get("native attention 2 4 16 8") == expected
