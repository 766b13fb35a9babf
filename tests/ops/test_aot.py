"""Triton kernels compile for every supported GPU, without one: no spills, shared memory within limits, wide loads."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled import Compiled, launches

from emfast._library import triton_launcher
from emfast.compilation.compiling import Layout, compiling

triton = pytest.importorskip("triton", reason="needs triton (the test extra installs it)")

pytestmark = pytest.mark.aot
KERNELS = Path(__file__).parent.parent.parent / "kernels"
SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB per block
WIDE_LOAD = re.compile(r"ld\.global\S*\.v4\.b32|cp\.async\.cg\.shared\.global .*, 0x10")
TENSOR_CORE = re.compile(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma")
LINEAR_LAYOUT = re.compile(r"(#\w+) = #ttg.linear<{.*?lane = (\[.*?\]), warp")
REDUCTION = re.compile(r'"tt.reduce"\(.*?\) <{axis = (\d+) .*?\}\) : \(tensor<[^,]*, (.*?)>\) ->', re.DOTALL)
SPILL_LIMIT = 8  # bytes: far below its limit of registers, ptxas may keep one address on the stack to fit another block
SPILL_LIMIT_AT_128 = 32  # bytes of addresses: of the largest tiles of group_norm_silu, whose threads may have no more


def group_norm_silu(dtype: torch.dtype, last: bool, shape: tuple[int, ...], groups: int, full: bool) -> None:
    """Launches forward and backward; full is with two tensors and all parameters per sample."""
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.empty(shape, dtype=dtype).contiguous(memory_format=layout)
    channels = shape[1] * (2 if full else 1)
    per_sample, weight = torch.empty(shape[0], channels), torch.empty(channels, dtype=dtype)
    skip, parameters = (x, (per_sample,) * 3) if full else (None, (None, weight, weight))
    names = ("group_norm_silu", "group_norm_silu_backward")
    forward, backward = (triton_launcher(name, name) for name in names)
    y, statistics = forward(x, skip, *parameters, groups, 1e-5, True)
    for added, learned in ((None, full), (x, full), (x, False)):  # what is added, whether parameters get gradients
        second = None if skip is None else added
        backward(y, x, skip, *parameters, statistics, groups, True, learned, added, second)


def normal(shape: tuple[int, ...]) -> None:
    """Launches the noise of two images."""
    ids = torch.arange(2)
    triton_launcher("random", "normal")(shape, ids, ids[0], -5)


def sampler_update(dtype: torch.dtype, shape: tuple[int, ...], full: bool) -> None:
    """Launches the update; full is with guidance."""
    x, ids = torch.empty(shape, dtype=dtype), torch.arange(shape[0])
    table = torch.empty(10, 9, dtype=torch.float64)
    triton_launcher("sampler_update", "sampler_update")(x, x, x if full else None, table, ids[0], ids, -5)


def mask_misfit(dtype: torch.dtype, mask_dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Launches the misfit of masked images."""
    x, mask = torch.empty(shape, dtype=dtype), torch.empty((shape[0], 1, *shape[2:]), dtype=mask_dtype)
    triton_launcher("mask_misfit", "mask_misfit")(x, x, mask)


def separable_blur(dtype: torch.dtype, shape: tuple[int, ...], circular: bool) -> None:
    """Launches the misfit of blurred images, which launches the blur and its adjoint too."""
    x, taps = torch.empty(shape, dtype=dtype), torch.empty(9)
    triton_launcher("separable_blur", "separable_blur_misfit")(x, x, taps, taps, circular)


def blur(dtype: torch.dtype, shape: tuple[int, ...], circular: bool) -> None:
    """Launches the misfit of blurred images, which launches the blur and its adjoint too."""
    x, kernel = torch.empty(shape, dtype=dtype), torch.empty(shape[0], 1, 9, 9)
    triton_launcher("blur", "blur_misfit")(x, x, kernel, circular)


def attention(dtype: torch.dtype, shape: tuple[int, ...], keys: int = 0) -> None:
    """Launches forward and backward on the output of one projection; with keys, on tensors of their own."""
    batch, heads, tokens, size = shape
    if not keys:
        packed = torch.empty(batch, tokens, 3, heads, size, dtype=dtype).permute(2, 0, 3, 1, 4)
        out, lse = triton_launcher("attention", "packed_attention")(packed, 1.0)
        triton_launcher("attention_backward", "packed_attention_backward")(out, packed, out, lse, 1.0)
        return
    query, (key, value) = torch.empty(shape, dtype=dtype), torch.empty(2, batch, heads, keys, size, dtype=dtype)
    out, lse = triton_launcher("attention", "attention")(query, key, value, 1.0)
    triton_launcher("attention_backward", "attention_backward")(out, query, key, value, out, lse, 1.0)


def residual_sum(dtype: torch.dtype, last: bool, shape: tuple[int, ...], terms: int) -> None:
    """Launches the sum of some terms and a bias."""
    x = torch.empty(shape, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    others = [x] * (terms - 1) + [None] * (3 - terms)
    triton_launcher("residual_sum", "residual_sum")(x, *others, torch.empty(shape[1]), 0.5)


BF16, FP32 = torch.bfloat16, torch.float32
CASES: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
    (group_norm_silu, (BF16, True, (2, 128, 32, 32), 32, True)),
    (group_norm_silu, (FP32, False, (2, 128, 32, 32), 32, False)),
    (group_norm_silu, (BF16, False, (2, 256, 8, 8), 32, False)),
    (group_norm_silu, (FP32, True, (1, 128, 128, 128), 32, False)),
    (group_norm_silu, (FP32, True, (1, 30, 33, 33), 3, True)),
    (group_norm_silu, (BF16, False, (1, 128, 256, 256), 32, False)),
    (group_norm_silu, (BF16, True, (2, 512, 16, 16), 1, False)),
    (normal, ((3, 32, 32),)),
    (sampler_update, (BF16, (2, 3, 32, 32), True)),
    (sampler_update, (FP32, (2, 1, 32, 32), False)),
    (mask_misfit, (BF16, FP32, (2, 3, 32, 32))),
    (mask_misfit, (FP32, FP32, (1, 1, 33, 33))),
    (separable_blur, (BF16, (2, 3, 32, 32), False)),
    (separable_blur, (FP32, (2, 3, 32, 32), True)),
    (blur, (BF16, (2, 3, 32, 32), False)),
    (blur, (FP32, (2, 3, 32, 32), True)),
    (attention, (BF16, (2, 32, 256, 8))),
    (attention, (BF16, (2, 8, 64, 8))),
    (attention, (torch.float16, (2, 8, 1024, 16))),
    (attention, (BF16, (2, 4, 256, 32))),
    (attention, (BF16, (2, 4, 1024, 32))),
    (attention, (BF16, (2, 4, 64, 64))),
    (attention, (torch.float16, (2, 4, 256, 64))),
    (attention, (BF16, (2, 4, 64, 128))),
    (attention, (BF16, (2, 4, 256, 128))),
    (attention, (BF16, (2, 1, 256, 256))),
    (attention, (BF16, (1, 3, 33, 17), 9)),
    (attention, (FP32, (2, 32, 256, 8))),
    (attention, (FP32, (2, 1, 1024, 16))),
    (attention, (FP32, (2, 4, 256, 32))),
    (attention, (FP32, (2, 4, 256, 64))),
    (attention, (BF16, (2, 1, 16, 256))),
    (attention, (FP32, (2, 4, 25, 64))),
    (residual_sum, (BF16, True, (2, 256, 32, 32), 3)),
    (residual_sum, (BF16, True, (2, 128, 16, 16), 2)),
    (residual_sum, (FP32, False, (2, 128, 16, 16), 3)),
    (residual_sum, (FP32, True, (1, 30, 33, 33), 2)),
    (group_norm_silu, (BF16, True, (2, 128, 32, 32), 32, False)),
    (group_norm_silu, (BF16, True, (2, 96, 32, 32), 24, True)),
    (group_norm_silu, (FP32, True, (2, 8, 16, 16), 2, False)),
]
ODD = {4, 11, 26, 36, 39}  # cases whose rows do not start at multiples of 16 bytes
NARROW = (normal, separable_blur, blur)  # read next to nothing, or gather from the caches
FEW = {(0, 90), (0, 120), (1, 86), (3, 80), (16, 80), (16, 90), (21, 100), (25, 120), (27, 86)}
SAMPLE = FEW | {(case, 90) for case in (7, 8, 10, 12, 14, 33, 37, 39)}  # of cases and architectures, run by default


def sums_of_lanes_apart(code: str) -> list[str]:
    """Returns the reductions over an axis whose lanes are not neighbours: Triton 3.6 and 3.7 add others instead.

    Its shuffles go over as many neighbouring lanes as the axis has, wherever those are. Only linear layouts, which
    reshapes leave behind, can have an axis like that.
    """
    lanes = {
        name: json.loads(bases) for name, bases in re.findall(r"(#\w+) = #ttg.linear<{.*?lane = (\[.*?\]), warp", code)
    }
    found = []
    for axis, layout in re.findall(
        r'"tt.reduce"\(.*?\) <{axis = (\d+) .*?\}\) : \(tensor<[^,]*, (.*?)>\) ->', code, re.S
    ):
        *dropped, name = re.findall(r"dim = (\d+)|(#\w+)", layout.replace("#ttg", ""))
        bases = lanes.get(name[1], [])
        for dim, _ in reversed(dropped):  # of slices, the innermost first
            bases = [basis[: int(dim)] + basis[int(dim) + 1 :] for basis in bases]
        places = [place for place, basis in enumerate(bases) if basis[int(axis)]]
        if places and places[-1] - places[0] >= len(places):
            found.append(layout)
    return found


def test_every_kernel_has_a_case() -> None:
    stems = {path.stem.removesuffix("_backward") for path in KERNELS.glob("*.py") if not path.stem.startswith("_")}
    assert stems - {"random"} <= {function.__name__ for function, _ in CASES}


every_case = pytest.mark.parametrize(
    "case", [pytest.param(i, id=f"{function.__name__}-{i}") for i, (function, _) in enumerate(CASES)]
)


@pytest.mark.parametrize("arch", SHARED_LIMIT)
@every_case
def test_compiles(case: int, arch: int, request: pytest.FixtureRequest) -> None:
    if (case, arch) not in SAMPLE and "aot" not in request.config.getoption("markexpr"):
        pytest.skip("a sample is compiled by default; -m aot compiles all")
    function, arguments = CASES[case]
    with compiling(arch) as done:
        function(*arguments)
    assert done.kernels
    for kernel, grid in zip(done.kernels, done.grids, strict=True):
        used = Compiled.of(kernel, grid)
        limit = SPILL_LIMIT_AT_128 if used.registers == 128 and function is group_norm_silu else SPILL_LIMIT
        assert used.stack <= limit, f"{kernel.name} spills {used.stack} bytes"
        assert used.shared <= SHARED_LIMIT[arch] * 1024, f"{kernel.name} needs {used.shared} bytes of shared memory"
        assert case in ODD or function in NARROW or WIDE_LOAD.search(kernel.asm["ptx"]), (
            f"{kernel.name} has no 16-byte loads"
        )
        multiplies = function is attention and arguments[0] != FP32  # float32 is not rounded to tf32
        assert multiplies == bool(TENSOR_CORE.search(kernel.asm["ptx"])), f"{kernel.name} and the tensor cores"
        assert not sums_of_lanes_apart(kernel.asm["ttgir"]), f"{kernel.name} adds the wrong lanes"


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("shape", [(256, 128, 32, 32), (256, 256, 16, 16)])
def test_normalisation_leaves_its_time_to_memory(shape: tuple[int, ...], backward: bool) -> None:
    """Issuing the instructions takes at most 3/4 of the time of the bytes, and loads go on while a program computes."""
    layout = Layout.of(torch.empty(shape, dtype=BF16, device="meta").contiguous(memory_format=torch.channels_last))
    statistics, weight = (Layout.of(torch.empty(*size, device="meta")) for size in ((2, shape[0], 32), shape[1:2]))
    parameters = (None, None, weight, weight)
    if backward:
        ours = launches(
            "group_norm_silu_backward", (layout, layout, *parameters, statistics, 32, True, False, None, None)
        )
    else:
        ours = launches("group_norm_silu", (layout, *parameters, 32, 1e-5, True))
    (kernel,) = ours
    moved = (3 if backward else 2) * 2 * torch.Size(shape).numel()
    assert kernel.ms <= 0.75 * moved / 3.0e12 * 1e3  # at the bandwidth of an H100's copy
    assert kernel.resident >= 2 or kernel.trips > 1


@every_case
def test_compiles_for_amd(case: int, request: pytest.FixtureRequest) -> None:
    """For information: no claim of speed. Tiles are chosen for other registers, and may spill on gfx942."""
    if "aot" not in request.config.getoption("markexpr"):
        pytest.skip("-m aot compiles all")
    function, arguments = CASES[case]
    with compiling("gfx942") as done:
        function(*arguments)
    assert done.kernels
    for kernel in done.kernels:
        assert kernel.metadata.shared <= 64 * 1024, f"{kernel.name} needs {kernel.metadata.shared} bytes of LDS"
