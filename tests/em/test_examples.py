"""The example configs: each runs, with its data and its sizes made small."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from emfast import Config, train
from emfast.em.state import RunFolder

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {
    "e_step": {"batch_size": 4, "shard_size": 4, "parts": 2, "scale_images": 2},
    "m_step": {"initial_steps": 2, "steps": 2, "final_steps": 2, "batch_size": 4, "warmup": 1},
    "evaluation": {"samples": 0, "pictures": 2},
    "gaussian": {"rounds": 2},
    "rounds": 1,
    "device": "cpu",
    "accelerate": False,
}


@pytest.mark.parametrize(
    "name",
    [
        "demo_denoising",
        "demo_deblurring",
        "demo_counts",
        "demo_detector",
        *[p.stem for p in EXAMPLES.glob("*_fast.yaml")],
    ],
)
def test_it_runs(tmp_path, name):
    tree = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    channels = 1 if name.startswith("demo") else 3
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, channels), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    paths = dict.fromkeys(("images", "clean", "reference"), str(tmp_path / "images.npy"))
    tree["data"] = {**paths, "clean_count": 4, "limit": 8}
    tree["network"] |= {"channels": [8] * len(tree["network"]["channels"]), "layers": 1, "groups": 4, "head_dim": 8}
    tree["sampler"]["init_args"]["steps"] = 3
    for group, values in SMALL.items():
        tree[group] = {**tree.get(group, {}), **values} if isinstance(values, dict) else values
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**tree, "output": str(tmp_path / "run")}))
    config = Config.from_yaml(path)
    train(config)
    rows = RunFolder(config.output).rows()
    assert [row["phase"] for row in rows] == ["initial", "warm"]
    assert all(row["psnr"] is not None for row in rows[1:])
