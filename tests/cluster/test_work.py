"""`emfast work`: processes that join the E-steps of a run, and leave them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_run import one_sentence, train, write_config

from emfast._files import read_tensors
from emfast.cli import main

HOST = str(Path(__file__).with_name("host.py"))


def models(folder):
    """The weights of all rounds."""
    files = sorted((folder / "run" / "rounds").glob("*/model/unet/*.safetensors"))
    return [read_tensors(path) for path in files]


def same(one, two):
    """Whether two runs have the same models, bit by bit."""
    first, second = models(one), models(two)
    return len(first) == len(second) > 0 and all(
        torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a
    )
