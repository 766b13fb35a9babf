"""Trains the small classifier whose features serve the Frechet distance of grey images, on the sample.

    python scripts/train_classifier.py

Writes emfast/data/sample/classifier.safetensors. Deterministic for a given torch version and number of threads.
"""

import argparse
import sys

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from emfast._files import write_tensors
from emfast.data import Images, load
from emfast.data.images import SAMPLE
from emfast.evaluation.feature_spaces import CLASSIFIER, Classifier

BATCH = 100


def read_labels(part: str) -> Tensor:
    """Returns the labels of a part of the sample."""
    with np.load(SAMPLE / f"{part}.npz") as arrays:
        return torch.from_numpy(arrays["labels"]).long()


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the images mirrored with probability 1/2 and shifted by up to 2 pixels, each on its own."""
    count, _, height, width = images.shape
    flip = torch.rand(count, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = functional.pad(images, (2, 2, 2, 2), value=-1.0)
    rows, columns = torch.randint(0, 5, (2, count), generator=generator)
    rows = (rows[:, None] + torch.arange(height))[:, :, None]
    columns = (columns[:, None] + torch.arange(width))[:, None, :]
    return padded[torch.arange(count)[:, None, None], 0, rows, columns][:, None]


def accuracy(network: Classifier, images: Images, labels: Tensor) -> float:
    """Returns the fraction of images classified as labelled."""
    network.eval()
    with torch.no_grad():
        found = torch.cat([network(images[ids]).argmax(1) for ids in torch.arange(len(images)).split(500)])
    return float((found == labels).float().mean())


def train(epochs: int, seed: int) -> Classifier:
    """Returns a classifier trained with AdamW, one cycle of the learning rate and label smoothing."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(seed)
    images, labels = load("sample:train"), read_labels("train")
    network = Classifier()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=5e-2)
    steps = epochs * len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    for _ in range(epochs):
        network.train()
        for ids in torch.randperm(len(images), generator=generator).split(BATCH):
            batch = augment(images[ids], generator)
            loss = functional.cross_entropy(network(batch), labels[ids], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network


def main() -> None:
    """Trains, reports the test accuracy, writes the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    network = train(arguments.epochs, arguments.seed)
    result = accuracy(network, load("sample:test"), read_labels("test"))
    write_tensors(CLASSIFIER, network.state_dict())
    sys.stdout.write(f"test accuracy {result:.4f}; {CLASSIFIER}: {CLASSIFIER.stat().st_size / 1e6:.2f} MB\n")


if __name__ == "__main__":
    main()
