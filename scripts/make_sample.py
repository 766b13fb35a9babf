"""Makes the sample that comes with the library from the IDX files of Fashion-MNIST.

    python scripts/make_sample.py FOLDER

FOLDER holds {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz and COPYRIGHT. The first 500 training and 50 test images of
each class are taken, in the order of the files: the same files give the same bytes.
"""

import argparse
import io
import shutil
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from emfast._files import write_file
from emfast.data.idx import read_array
from emfast.data.images import SAMPLE

CLASSES = 10
PARTS = {"train": ("train", 500), "test": ("t10k", 50)}


def first_of_each_class(labels: Tensor, count: int) -> Tensor:
    """Returns the ids of the first so many images of each class, ascending."""
    ids = [(labels == label).nonzero()[:count, 0] for label in range(CLASSES)]
    return torch.cat(ids).sort().values


def write_compressed(file: BinaryIO, arrays: dict[str, np.ndarray]) -> None:
    """Writes a .npz of best compression, without the time of day that numpy would put in it."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), zipfile.ZIP_DEFLATED, 9)


def main() -> None:
    """Writes emfast/data/sample/{train,test}.npz and COPYRIGHT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for part, (prefix, count) in PARTS.items():
        labels = read_array(folder / f"{prefix}-labels-idx1-ubyte.gz")
        images = read_array(folder / f"{prefix}-images-idx3-ubyte.gz")
        ids = first_of_each_class(labels, count)
        arrays = {"images": images[ids].numpy(), "labels": labels[ids].numpy()}
        path = SAMPLE / f"{part}.npz"
        write_file(path, lambda file, arrays=arrays: write_compressed(file, arrays))  # type: ignore[misc]
        sys.stdout.write(f"{path}: {len(ids)} images, {path.stat().st_size / 1e6:.2f} MB\n")
    shutil.copyfile(folder / "COPYRIGHT", SAMPLE / "COPYRIGHT")


if __name__ == "__main__":
    main()
