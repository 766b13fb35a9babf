"""The grid of kernels that go over images block by block.

It has one axis, since a GPU has room for 65,535 programs along any other: blocks of one large image may be more, and so
may images.
"""

import triton
import triton.language as tl


@triton.jit
def place(count, BLOCK: tl.constexpr):
    """Returns this program's image, and the first of the BLOCK elements, of `count`, that it works on."""
    blocks = tl.cdiv(count, BLOCK)
    return (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * BLOCK


def grid(images: int, count: int, block: int) -> tuple[int]:
    """Returns the grid: the blocks of an image side by side, one image after the other.

    Arguments:
        images: How many there are.
        count: The elements of one.
        block: The elements of a program.
    """
    return (images * triton.cdiv(count, block),)
