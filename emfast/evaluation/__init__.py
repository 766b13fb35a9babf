"""How good images are, one by one and as a set, and the feature spaces that sets are compared in."""

from emfast.evaluation.feature_spaces import Features, default_features, features
from emfast.evaluation.metrics import coverage, frechet_distance, lpips, psnr, ssim

__all__ = ["Features", "coverage", "default_features", "features", "frechet_distance", "lpips", "psnr", "ssim"]
