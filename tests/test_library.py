import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from contracts import replace_way

from emfast import _library, dispatch
from emfast._library import OPS
from emfast.diffusion import Denoiser, TiledDenoiser, VPSchedule
from emfast.dispatch import TABLE, backend, pick, recorded, way
from emfast.info import info
from emfast.nn import convolution
from emfast.nn.ways.operands import Plan
from emfast.ops import attention, blur, group_norm_silu, residual_sum
from emfast.ops.group_norm_fork import group_norm_fork

X = torch.ones(1, 4, 2, 3).mT  # for other strides native torch is faster


def test_import_takes_torch_and_nothing_heavier():
    heavy = "diffusers", "triton", "matplotlib", "pandas", "scipy", "emfast._C"
    code = f"import sys, emfast, emfast.ops; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_forced_backend_is_the_one_that_runs(monkeypatch):
    seen = []
    for kernel in TABLE["group_norm_silu"]:
        spy = lambda *args, kernel=kernel: seen.append(kernel.name) or kernel.compute(*args)  # noqa: E731
        replace_way(monkeypatch, "group_norm_silu", kernel.name, compute=spy)
    group_norm_silu(X, 2)
    with backend("reference"):
        group_norm_silu(X, 2)
    assert seen == ["reference" if way("group_norm_silu", "cpp").missing("cpu") else "cpp", "reference"]


def test_a_forced_backend_never_falls_back(monkeypatch):
    with (
        backend("triton"),
        pytest.raises(NotImplementedError, match="forced backend 'triton', got Triton kernels do not"),
    ):
        group_norm_silu(X, 2)
    monkeypatch.setattr(_library, "extension_error", lambda: "emfast._C is not compiled")
    with (
        backend("cpp"),
        pytest.raises(NotImplementedError, match=r"forced backend 'cpp', got emfast._C is not compiled"),
    ):
        group_norm_silu(X, 2)
    with backend("reference"):
        expected = group_norm_silu(X, 2)
    assert torch.equal(group_norm_silu(X, 2), expected)  # nothing forced: the reference takes over


def test_it_is_forced_in_the_threads_of_a_backward_pass_too():
    with backend("reference"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: list(dispatch._forced)).result() == ["reference"]
    assert not dispatch._forced


def test_what_a_kernel_does_not_take_goes_to_the_reference_unless_forced():
    assert group_norm_silu(X.double(), 2).dtype == torch.float64
    if way("group_norm_silu", "cpp").missing("cpu"):
        pytest.skip("emfast._C is not compiled")
    with backend("cpp"), pytest.raises(NotImplementedError, match=r"torch.float64"):
        group_norm_silu(X.double(), 2)


def test_where_the_reference_is_faster_it_runs_unless_one_is_forced(monkeypatch):
    few = (torch.ones(1, 4, 64, 256), None, [torch.ones(3, 4, 1, 1)], [], None, 1, 0, False)
    assert way("convolution", "cpp").slower(*few)
    replace_way(monkeypatch, "convolution", "cpp", missing=lambda device: None, unsupported=lambda *args: None)
    for kernel in TABLE["convolution"]:
        replace_way(monkeypatch, "convolution", kernel.name, compute=lambda *args, name=kernel.name: name)
    assert dispatch.run("convolution", "cpu", *few) == "reference"
    with backend("cpp"):
        assert dispatch.run("convolution", "cpu", *few) == "cpp"


def test_tensors_made_for_a_call_live_until_it_returns(monkeypatch):
    made, seen = [], []

    def tensor():
        x = torch.ones(3)
        made.append(weakref.ref(x))
        return x

    def kernel(*arguments):
        alive = [ref() for ref in made]
        assert arguments == ([alive[0].data_ptr(), 0], [[alive[1].data_ptr(), 3]], (None, 2), False)
        seen.append(len(alive))

    monkeypatch.setattr(_library, "extension", lambda: SimpleNamespace(kernel=kernel))
    _library.run_cpp("kernel", [tensor(), None], [[tensor(), 3]], (None, 2), False)
    assert seen == [2]


def test_an_unknown_backend_is_an_error():
    with (
        pytest.raises(ValueError, match=r"backend: expected name to be one of reference, cpp, triton, got cuda."),
        backend("cuda"),
    ):
        pass


def test_the_meta_device_gives_shapes():
    x = torch.empty(2, 4, 3, 3, device="meta").to(memory_format=torch.channels_last)
    y = group_norm_silu(x, 2)
    assert y.shape == x.shape
    assert y.stride() == x.stride()


def test_a_real_tensor_beside_one_without_values_has_no_result():
    with pytest.raises(RuntimeError, match="blur: expected all tensors to be on one device, got cpu and meta"):
        blur(torch.ones(1, 1, 4, 4), KERNEL[:1, :1].to("meta"))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_nothing_reads_the_memory_of_weights_without_values(device):
    """Weights on meta, as those of a network that is loaded in parts: their address is 0."""
    x, weight = torch.ones(2, 32, 8, 8, device=device), torch.ones(32, 32, 3, 3, device="meta")
    with recorded() as choices:
        pick("convolution layer", "cpu", Plan(1, 1, False, torch.float32, 1, False), (x,), (weight,), ())
    assert choices[0].way == "torch"


def test_info_says_which_backend_runs_each_op_and_why():
    ops = info()["ops"]
    assert ops.keys() == OPS.keys()
    for name, devices in ops.items():
        for device, choice in devices.items():
            assert choice["runs"] not in choice["not"]
            missing = {kernel.name: kernel.missing(device) for kernel in TABLE[name]}
            assert all(missing.get(other, reason) == reason for other, reason in choice["not"].items())


KERNEL, SCALE = torch.ones(4, 4, 3, 3), torch.full((4,), 2.0)
TILED = TiledDenoiser(Denoiser(lambda x, t: x.square(), VPSchedule.linear()), 2, overlap=1)


@pytest.mark.parametrize("function", [torch.autograd.functional.jvp, torch.autograd.functional.vhp])
@pytest.mark.parametrize(
    "differentiated",
    [
        lambda x: convolution(x, KERNEL, padding=1),
        lambda x: group_norm_fork(x, 2, SCALE, SCALE)[0],
        lambda x: TILED(x, 300),
    ],
    ids=["convolution", "group_norm_fork", "tiles"],
)
def test_no_derivative_of_second_order_is_zero_without_a_word(differentiated, function):
    x = torch.randn(1, 4, 4, 4)
    scalar = function is torch.autograd.functional.vhp
    with pytest.raises(NotImplementedError, match="second order"):
        function(lambda x: differentiated(x).square().sum() if scalar else differentiated(x), x, x)


@pytest.mark.parametrize(
    "differentiated",
    [
        lambda x: blur(x, KERNEL[:1, :1]),
        lambda x: attention(x.detach(), x, x),
        lambda x: residual_sum(x, x, bias=SCALE),
        lambda x: convolution(x, KERNEL, padding=1),
    ],
    ids=["blur", "attention", "residual_sum", "convolution"],
)
@pytest.mark.parametrize("function", [torch.func.jvp, lambda f, x, _: torch.func.jacfwd(f)(*x)], ids=["jvp", "jacfwd"])
def test_no_derivative_in_forward_mode_is_zero_without_a_word(differentiated, function):
    x = torch.randn(1, 4, 4, 4)
    with pytest.raises((NotImplementedError, RuntimeError), match=r"forward mode|functorch transforms"):
        function(differentiated, (x,), (x,))
    assert not differentiated(x).requires_grad


def test_a_first_derivative_may_be_asked_to_keep_its_graph():
    x = torch.randn(1, 4, 4, 4, requires_grad=True)
    plain, kept = (
        torch.autograd.grad(convolution(x, KERNEL, padding=1).sum(), x, create_graph=keep)[0] for keep in (False, True)
    )
    torch.testing.assert_close(plain, kept)
