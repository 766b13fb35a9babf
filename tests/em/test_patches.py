"""Large observations: learned from in patches, restored by tiles."""

import json

import numpy as np
import pytest
import torch
from tiny_run import CONFIG, one_sentence

from emfast.cli import main
from emfast.config import Config, DataConfig, EvaluationConfig
from emfast.data.patches import cut_patches
from emfast.em import Observations
from emfast.em.given import take
from emfast.em.inputs import read_inputs
from emfast.operators import Identity, Mask


def test_patches_cover_an_image():
    images = torch.arange(2 * 3 * 20 * 26, dtype=torch.float32).reshape(2, 3, 20, 26)
    patches = cut_patches(images, 8)
    assert patches.shape == (2 * 3 * 4, 3, 8, 8)
    assert set(patches.flatten().tolist()) == set(images.flatten().tolist())
    with pytest.raises(ValueError, match=r"data\.patch to be <= 20"):
        cut_patches(images, 21)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    generator = np.random.default_rng(0)
    mask = generator.random((3, 1, 26, 31)) > 0.4
    mask[0, :, :12, :12] = False  # a patch that shows nothing
    slopes = generator.random((3, 1, 1, 1)) * np.indices((26, 31)).sum(0) / 57 - 0.4
    np.savez(folder / "y.npz", y=slopes.astype(np.float32), mask=mask)
    config = {**CONFIG, "data": {"observations": str(folder / "y.npz"), "patch": 12}, "output": str(folder / "run")}
    del config["operator"]
    config |= {"gaussian": {"rounds": 2, "rank": 4}, "final_rounds": 0}
    (folder / "config.yaml").write_text(json.dumps(config))
    assert main(["train", "--config", str(folder / "config.yaml")]) == 0
    return folder


def test_patches_bring_their_masks(folder):
    observations = Observations.from_file(folder / "y.npz", None, patch=12)
    assert len(observations) == 3 * 3 * 3 - 1
    assert observations.shape == (1, 12, 12)


def test_whole_observations_are_restored_by_tiles(folder, capsys):
    argv = ["restore", str(folder / "run"), "--observations", str(folder / "y.npz"), "--sampler.steps", "2"]
    assert main([*argv, "--output", str(folder / "out")]) == 0
    assert "Tiles:    12 x 12" in capsys.readouterr().out
    assert np.load(folder / "out/reconstructions.npz")["images"].shape == (3, 1, 26, 31)


def test_operators_that_mix_pixels_are_refused(folder, capsys):
    argv = ["train", "--config", str(folder / "config.yaml"), "--output", str(folder / "blur")]
    with np.load(folder / "y.npz") as arrays:
        np.savez(folder / "blurred.npz", y=arrays["y"])
    assert main([*argv, "--data.observations", str(folder / "blurred.npz"), "--operator", "GaussianBlur"]) == 2
    assert one_sentence(capsys.readouterr().err, ["data.patch", "GaussianBlur"])


def test_no_pixel_of_a_patch_that_is_held_out_is_learned_from(tmp_path):
    y = (torch.arange(12 * 20 * 28) / 6720 - 0.5).reshape(12, 1, 20, 28)
    mask = torch.ones(12, 1, 20, 28)
    mask[0, :, :8, :8] = 0  # a patch that is left out
    np.savez(tmp_path / "y.npz", y=y.numpy(), mask=mask.numpy())
    np.save(tmp_path / "images.npy", y.numpy())
    data = DataConfig(images=str(tmp_path / "images.npy"), patch=8, limit=100, held_out=10, clean_count=0)
    simulated = Config(operator=Identity(), sigma=1e-4, data=data, evaluation=EvaluationConfig(samples=0))
    for found in (
        Observations.from_file(tmp_path / "y.npz", None, patch=8).holding_out(10),
        read_inputs(simulated).observations,
    ):
        known = found.y if found.y is not None else found.images[:]
        held = set(known[found.held_out].flatten().tolist())
        assert len(found.held_out) == 10
        assert len(found) > 60
        assert not held & set(known[found.ids].flatten().tolist())


def test_patches_that_all_overlap_those_held_out_leave_nothing_to_learn_from(tmp_path):
    np.savez(tmp_path / "y.npz", y=np.zeros((4, 1, 12, 12), np.float32))
    data = Observations.from_file(tmp_path / "y.npz", Identity(), sigma=0.1, patch=8)
    with pytest.raises(ValueError, match="none of which shares pixels with those held out"):
        data.holding_out(8)


def test_observations_given_in_python_are_cut_too(tmp_path):
    y, mask = torch.zeros(4, 1, 16, 20), torch.ones(4, 1, 16, 20)
    mask[0, :, :8, :8] = 0
    config = Config(operator=Mask(), data=DataConfig(patch=8, held_out=2, limit=3), output=str(tmp_path))
    config, given = take(config, observations={"y": y, "mask": mask})
    found = read_inputs(config, given).observations
    assert found.shape == (1, 8, 8)
    assert len(found.y) == 3 * 2 * 3 - 1
