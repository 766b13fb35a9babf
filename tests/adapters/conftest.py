"""The ways that an accelerated network goes."""

import pytest

from emfast.nn.rehearsal import rehearsed


@pytest.fixture(params=["own", "gpu"])
def way(request, device):
    """The way of the device under test, then that of GPUs on a CPU."""
    if request.param == "own":
        yield
        return
    if device.type == "cuda":
        pytest.skip("a GPU goes its own way already")
    with rehearsed():
        yield
