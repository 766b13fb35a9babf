"""Options, fixtures and rules of the whole test suite."""

import pytest
import torch

from emfast._library import extension, extension_error
from emfast.nn.rehearsal import rehearsed


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where the ops run: cpu or cuda")
    parser.addoption("--all", action="store_true", help="tries every case where a sample of them is tried otherwise")
    parser.addoption("--backend", default=None, help="the only backend to test ops on: reference, cpp or triton")


def pytest_configure(config):
    config.addinivalue_line("markers", "aot: compiles Triton kernels ahead of time; -m aot compiles all of them")


def pytest_generate_tests(metafunc):
    """Runs every test that asks for a backend on all that the device can have, C++ once per instruction set."""
    if "backend" not in metafunc.fixturenames:
        return
    one = metafunc.config.getoption("--backend")
    kernels = ["triton"] if metafunc.config.getoption("--device") == "cuda" else ["cpp"]
    names = [one] if one else ["reference", *kernels]
    if "cpp" in names and not extension_error():
        names.remove("cpp")
        names += [f"cpp-{name}" for name in extension().instruction_sets()]
    metafunc.parametrize("backend", names, indirect=True)


def pytest_collection_modifyitems(config, items):
    """Away from the CPU only those tests run that ask for the device: the others would do the same again."""
    if config.getoption("--device") != "cpu":
        others = [item for item in items if "device" not in item.fixturenames]
        items[:] = [item for item in items if "device" in item.fixturenames]
        config.hook.pytest_deselected(items=others)


@pytest.fixture
def backend(request):
    """The backend under test."""
    name, _, instruction_set = request.param.partition("-")
    if instruction_set:
        extension().use_instruction_set(instruction_set)
    yield name
    if instruction_set:
        extension().use_instruction_set(extension().instruction_sets()[-1])


@pytest.fixture
def device(request):
    """The device under test."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def float32_is_float32(monkeypatch):
    """Keeps cuDNN from tf32: how exact native torch is would depend on the kernel that it picks for a layout."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fills uninitialised memory (torch.empty and the like) with NaN, so that reading it before it is written shows."""
    deterministic, fill = (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture(params=["own", "gpu"])
def way(request, device):
    """The ways that layers go: those of the device under test, then those of a GPU on a CPU."""
    if request.param == "own":
        yield
        return
    if device.type == "cuda":
        pytest.skip("a GPU goes its own way already")
    with rehearsed():
        yield
