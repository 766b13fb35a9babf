"""Train clean diffusion models from corrupted observations by expectation-maximization."""

__version__ = "0.1.0"
