"""Tries the wheel for the Python that runs this, as its users would: in a fresh environment, without any compiler.

`python3.12 scripts/try_wheel.py dist` installs it, prints `emfast info`, trains on a few images, and runs the op tests
on every instruction set that this machine has.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    "mask_misfit",
    "group_norm_silu",
    "attention",
    "convolution",
    "normal",
    "separable_blur",
    "winograd_convolution",
)
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "ssl_cert_file", "requests_ca_bundle")
CONFIG = """
data: {size: 12, limit: 24, clean_count: 16}
sampler: {class_path: DPS, init_args: {steps: 3}}
network: {channels: [8, 16], attention: [1], groups: 4, head_dim: 8, layers: 1}
e_step: {batch_size: 8, shard_size: 8}
m_step: {initial_steps: 4, steps: 4, final_steps: 4, batch_size: 8}
evaluation: {samples: 16, steps: 2, pictures: 4}
rounds: 1
final_rounds: 0
device: cpu
"""


def main(folder: str) -> None:
    """Ends with the exit status of the first step that fails."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheels = sorted(Path(folder).resolve().glob(f"*-{tag}-*.whl"))
    if not wheels:
        sys.exit(f"try_wheel: expected a wheel for {tag} in {folder}, got none")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        venv.create(scratch / "venv", with_pip=True)
        path = commands(scratch)
        environment = {**kept(os.environ), "PATH": str(path), "HOME": name, "OMP_NUM_THREADS": "1"}

        def run(program: str, *arguments: str) -> None:
            command = [str(scratch / "venv" / "bin" / program), *arguments]
            if status := subprocess.run(command, cwd=scratch, env=environment).returncode:
                sys.exit(f"try_wheel: {tag}: {program} {' '.join(arguments)[:80]} ended with {status}")

        run("pip", "install", "-q", f"{wheels[-1]}", "pytest", "hypothesis")
        shutil.copytree(ROOT / "tests", scratch / "tests")
        (scratch / "config.yaml").write_text(CONFIG)
        run("emfast", "info")
        run("emfast", "train", "--config", "config.yaml", "--output", "run")
        tests = [f"tests/ops/test_{test}.py" for test in TESTS]
        run("python", "-m", "pytest", "-q", "-o", "pythonpath=tests", "--backend", "cpp", *tests)
        print(f"{wheels[-1].name}: installed, trained and tested without a compiler")


def kept(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns what the environment says of where packages come from: settings of pip, and proxies."""
    return {key: value for key, value in environment.items() if key.startswith("PIP_") or key.lower() in PROXIES}


def commands(scratch: Path) -> Path:
    """Returns a folder with the commands that may be used: no compiler is among them."""
    folder = scratch / "bin"
    folder.mkdir()
    for command in ("env", "sh", "uname"):
        os.symlink(str(shutil.which(command)), folder / command)
    return folder


if __name__ == "__main__":
    main(*sys.argv[1:])
