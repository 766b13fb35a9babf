"""The matrices of Winograd's algorithm for tiles of 2 rows and `width` columns, and a kernel of 3 x 3.

A row of image d, kernel g and result m is transformed by B^T d, G g and A^T m. They evaluate polynomials at the points
0, 1, -1 and infinity, or at 0, r, -r, 1 / r, -1 / r and infinity, and interpolate. r^2 = 1 / 2 loses least to rounding.
"""

import torch

ROWS, WIDTHS = 2, (2, 4)  # of a tile's result


def best_width(columns: int) -> int:
    """Returns the width of tiles that was measured to be the faster one, for images with so many columns.

    Wide tiles have a quarter less to multiply, but half as many kernels again to read. Time with width 2 over that with
    width 4, batch 4, two threads with AVX-512: 128 channels at 32 x 32 1.2x, 256 at 16 x 16 1.1x to 1.2x, at 8 x 8 1.1x
    and at 4 x 4 0.8x; of batch 64, 32 channels at 32 x 32 1.2x and 64 at 8 x 8 1.1x.
    """
    return 4 if columns >= 8 else 2


r = 0.5**0.5
B = {
    2: torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], dtype=torch.float64),
    4: torch.tensor(
        [
            [1, 0, -2.5, 0, 1, 0],
            [0, 2 * r, 2, -r, -1, 0],
            [0, -2 * r, 2, r, -1, 0],
            [0, -r, -0.5, 2 * r, 1, 0],
            [0, r, -0.5, -2 * r, 1, 0],
            [0, 1, 0, -2.5, 0, 1],
        ],
        dtype=torch.float64,
    ),
}
G = {
    2: torch.tensor([[2.0, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], dtype=torch.float64) / 2,
    4: torch.tensor(
        [[6, 0, 0], [4, 4 * r, 2], [4, -4 * r, 2], [1, 2 * r, 2], [1, -2 * r, 2], [0, 0, 6]], dtype=torch.float64
    )
    / 6,
}
A = {
    2: torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]], dtype=torch.float64),
    4: torch.tensor(
        [
            [1, 1, 1, 1, 1, 0],
            [0, r, -r, 2 * r, -2 * r, 0],
            [0, 0.5, 0.5, 2, 2, 0],
            [0, r / 2, -r / 2, 4 * r, -4 * r, 1],
        ],
        dtype=torch.float64,
    ),
}
