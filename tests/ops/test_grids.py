"""Grids of Triton kernels over images: a GPU has room for 2^31 programs along the first axis, 65,535 along others."""

import importlib

import pytest
import torch

pytest.importorskip("triton", reason="needs triton (the test extra installs it)")

from emfast.kernels._launch import instead_of_launching

SIDE, TAPS = 1 << 13, torch.ones(3, device="meta")


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def calls(images, channels, side):
    """Every op that goes over images block by block, as its launcher is called."""
    x, ids, step = empty(images, channels, side, side), empty(images, dtype=torch.int64), empty(dtype=torch.int64)
    return {
        "normal": ("random", x.shape[1:], ids, step, 0),
        "sampler_update": ("sampler_update", x, x, None, empty(4, 9, dtype=torch.float64), step, ids, 0),
        "mask_misfit": ("mask_misfit", x, x, x[:1, :1]),
        "blur": ("blur", x, empty(1, 1, 3, 3), False, True),
        "blur_misfit": ("blur", x, x, empty(images, 1, 3, 3), False),
        "separable_blur": ("separable_blur", x, TAPS, TAPS, False, True),
        "separable_blur_misfit": ("separable_blur", x, x, TAPS, TAPS, True),
    }


@pytest.mark.parametrize(("images", "channels", "side"), [(1, 3, SIDE), (1, 1, 1 + SIDE), (1 << 17, 1, 2)])
@pytest.mark.parametrize("name", calls(1, 1, 1))
def test_large_images_and_many_have_room_on_a_gpu(name, images, channels, side):
    grids = []
    stem, *arguments = calls(images, channels, side)[name]
    with instead_of_launching(lambda kernel, grid, *rest: grids.append(grid)):
        getattr(importlib.import_module(f"emfast.kernels.{stem}"), name)(*arguments)
    assert grids
    for first, *others in grids:
        assert first < 1 << 31
        assert all(programs < 1 << 16 for programs in others)
