"""The whole EM run in Python, with an operator that is a plain function; then new observations, restored.

python examples/em_in_python.py [FOLDER]

A camera records every pixel as the mean of its neighbourhood and loses every other row: `camera` below. The same call
again goes on where an interrupted run stopped.
"""

import sys

import torch
from torch.nn import functional

import emfast
from emfast.config import DataConfig, EvaluationConfig, MStepConfig, NetworkConfig


def camera(x: torch.Tensor) -> torch.Tensor:
    """A batch of images to a batch of observations, linear; the adjoint comes from autograd."""
    return functional.avg_pool2d(x, 3, stride=1, padding=1)[:, :, ::2]


def make_config(folder: str) -> emfast.Config:
    """Returns the run: everything that is not named has its default, the sampler that of the operator."""
    return emfast.Config(
        output=folder,
        data=DataConfig(images="sample:train", size=16, limit=512, clean_count=50),
        operator=emfast.operators.Linear(camera, shape=(1, 16, 16)),
        sigma=0.02,
        sampler=emfast.samplers.MMPS(steps=14, iterations=1, order=1),
        network=NetworkConfig(channels=[32, 64, 64], attention=[2], groups=8, layers=1),
        m_step=MStepConfig(initial_steps=250, steps=250, batch_size=64, learning_rate=1e-3, warmup=50, ema=0.99),
        evaluation=EvaluationConfig(samples=256, steps=25),
        rounds=3,
        final_rounds=0,
    )


def show(event: emfast.em.Event) -> None:
    """Prints the metrics of every round; `emfast.em.Progress` events tell how far a phase is."""
    if isinstance(event, emfast.em.RoundFinished):
        print({name: event.row[name] for name in ("round", "psnr", "fd")})


def main(config: emfast.Config) -> torch.Tensor:
    """Trains, and restores observations that training has not seen, batch after batch with one captured graph."""
    model = emfast.train(config, callback=show)
    print(emfast.reporting.draw_run(config.output))

    denoiser, shape = emfast.em.load_model(model)
    emfast.accelerate(denoiser.network)
    x = emfast.data.load("sample:test", size=shape[-1], limit=32)[:]
    y = config.operator.observe(x, config.sigma)
    with emfast.graphs():
        parts = [
            config.sampler(denoiser, y[ids], config.operator, sigma=config.sigma, ids=ids)
            for ids in torch.arange(len(y)).split(16)
        ]
    restored = torch.cat(parts)
    print(f"PSNR {emfast.evaluation.psnr(restored, x).mean():.2f} dB")
    print(emfast.reporting.save_grid(f"{config.output}/restored.png", restored))
    return restored


if __name__ == "__main__":
    main(make_config(*sys.argv[1:2] or ["runs/em-in-python"]))
