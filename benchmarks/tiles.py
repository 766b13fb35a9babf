"""Whether tiles leave seams in restored images: errors and jumps at their borders, beside those elsewhere.

python benchmarks/tiles.py make            # writes train.npy and test.npy: 256 x 256, discs that hide one another
emfast train --config benchmarks/tiles.yaml
emfast restore runs/tiles --images test.npy --output restored
python benchmarks/tiles.py restored --truth test.npy --tile 32

error: the root mean square error of unobserved pixels, next to the border of a tile over that 3 pixels away from all.
jump: the mean difference of neighbours across a border over that elsewhere, of the restored images and of the truth.
"""

import argparse
from pathlib import Path

import numpy as np

from emfast.data import load
from emfast.diffusion.tiled import starts


def borders(side, tile, overlap):
    """Returns the first pixels behind the borders of tiles."""
    return np.array(sorted({end for start in starts(side, tile, overlap) for end in (start, start + tile)} - {0, side}))


def ratios(x, truth, mask, tile, overlap):
    """Returns the ratio of errors, that of jumps, and that of the jumps of the truth.

    Arguments:
        x, truth: (N, C, S, S) images.
        mask: (N, 1, S, S), 0 where a pixel is missing.
        tile, overlap: The side of the tiles, and by how much they overlap.
    """
    side = x.shape[-1]
    ends = borders(side, tile, overlap)
    distance = np.abs(np.arange(side)[:, None] + 0.5 - ends).min(1)
    near, far = distance < 1, distance > 3
    squares = np.where(mask == 0, (x - truth) ** 2, np.nan)
    at_borders = squares[..., near[:, None] | near[None, :]]
    inside = squares[..., far[:, None] & far[None, :]]
    jumps = []
    for images in (x, truth):
        steps = np.abs(np.diff(images, axis=-1)).mean((0, 1, 2))
        jumps.append(steps[ends - 1].mean() / np.delete(steps, ends - 1).mean())
    return np.sqrt(np.nanmean(at_borders) / np.nanmean(inside)), *jumps


def discs(side, generator):
    """Returns an image of discs that hide one another, with sizes like those of things in photographs."""
    image = np.full((side, side), np.nan)
    rows, columns = np.mgrid[:side, :side]
    for _ in range(6000):
        radius = min(3 / np.sqrt(generator.random() + 1e-3), side / 3)
        x, y = generator.random(2) * side
        inside = ((columns - x) ** 2 + (rows - y) ** 2 < radius**2) & np.isnan(image)
        shade = generator.uniform(-0.9, 0.9) + 0.3 * generator.uniform(-1, 1) * (columns - x) / radius
        image[inside] = shade[inside]
        if not np.isnan(image).any():
            break
    return np.nan_to_num(image).clip(-1, 1).astype(np.float32)


def main():
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("restored", help="the output of emfast restore, of square images; or make")
    parser.add_argument("--truth", help="their clean images")
    parser.add_argument("--tile", type=int, default=32)
    parser.add_argument("--overlap", type=int, help="a quarter of a tile by default")
    options = parser.parse_args()
    if options.restored == "make":
        generator = np.random.default_rng(0)
        for name, count in (("train", 10), ("test", 2)):
            np.save(f"{name}.npy", np.stack([discs(256, generator) for _ in range(count)])[:, None])
        return
    folder = Path(options.restored)
    x, mask = np.load(folder / "reconstructions.npz")["images"], np.load(folder / "observations.npz")["mask"]
    truth = load(options.truth)[: len(x)].numpy()
    overlap = options.tile // 4 if options.overlap is None else options.overlap
    error, jump, usual = ratios(x, truth, mask, options.tile, overlap)
    print(f"error at borders: {error:.3f} of that inside; jumps: {jump:.3f} (truth: {usual:.3f})")


if __name__ == "__main__":
    main()
