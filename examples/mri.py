"""Accelerated MRI: several receive coils, a part of Fourier space, complex images as two channels; no clean image.

Run it with `python examples/mri.py` (a few minutes on a CPU, on made-up data). From a file of your own,
`kspace.h5` with `y`, `sampled` and `coils` as `measure` returns them, in the folder that holds `examples/`:

    emfast train --data.observations kspace.h5 --operator examples.mri.MultiCoil --sigma 0.01
"""

import torch
from torch import Tensor

import emfast
from emfast.config import Config, DataConfig
from emfast.operators import Operator
from emfast.operators.base import Parameters


class MultiCoil(Operator):
    r"""Fourier space of what each coil sees, where it was sampled.

    .. math:: y_c = M \mathcal F (s_c \cdot x)

    An image is (2, H, W), its real and its imaginary part; an observation is (2, coils, H, W). Both parameters come
    with each observation: `sampled` (B, 1, 1, H, W), of 0 and 1, and `coils` (B, 2, coils, H, W), the complex maps of
    sensitivity s_c. Where their squares add up to 1, A has the norm 1.
    """

    def parameters(self, ids: Tensor, shape: tuple[int, ...]) -> Parameters:
        """Returns nothing: the parameters come with the observations."""
        return {}

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Returns A x, (B, 2, coils, H, W)."""
        seen = as_complex(x)[:, None] * as_complex(parameters["coils"])
        return parameters["sampled"].to(x.dtype) * as_channels(torch.fft.fft2(seen, norm="ortho"))

    def adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns A^T y, (B, 2, H, W): what each coil sees, brought together."""
        seen = torch.fft.ifft2(as_complex(parameters["sampled"].to(y.dtype) * y), norm="ortho")
        return as_channels((as_complex(parameters["coils"]).conj() * seen).sum(1))

    def project(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns y without what a file holds where nothing was sampled."""
        return torch.where(parameters["sampled"] != 0, y, 0)

    def noise(self, z: Tensor, parameters: Parameters) -> Tensor:
        """Returns z where there is a measurement, and so noise."""
        return parameters["sampled"].to(z.dtype) * z


def as_complex(x: Tensor) -> Tensor:
    """Returns (B, 2, ...) as complex (B, ...)."""
    return torch.complex(x[:, 0].float(), x[:, 1].float()) if x.dtype != torch.float64 else torch.complex(*x.unbind(1))


def as_channels(x: Tensor) -> Tensor:
    """Returns complex (B, ...) as (B, 2, ...)."""
    return torch.stack((x.real, x.imag), 1)


def phantoms(count: int, side: int, seed: int = 0) -> Tensor:
    """Returns made-up slices of heads, (N, 2, side, side): ellipses with a slowly varying phase."""
    generator = torch.Generator().manual_seed(seed)
    line = torch.linspace(-1, 1, side)
    v, u = torch.meshgrid(line, line, indexing="ij")
    image = torch.zeros(count, side, side)
    for index in range(6):
        cx, cy, angle = (torch.rand(3, count, 1, 1, generator=generator) - 0.5) * (0.9 if index else 0.1)
        a, b = torch.rand(2, count, 1, 1, generator=generator) * 0.25 + (0.12 if index else 0.6)
        along, across = (u - cx) * angle.cos() + (v - cy) * angle.sin(), (v - cy) * angle.cos() - (u - cx) * angle.sin()
        inside = torch.sigmoid((1 - (along / a).square() - (across / b).square()) * side / 4)
        image += inside * (0.5 if index == 0 else 0.25 * (torch.rand(count, 1, 1, generator=generator) * 2 - 1))
    phase = (torch.rand(2, count, 1, 1, generator=generator) * 2 - 1) * torch.stack((u, v))[:, None]
    return as_channels(torch.polar(image.clamp(0, 0.95), phase.sum(0)))


def measure(x: Tensor, coils: int = 4, acceleration: int = 3, sigma: float = 0.01, seed: int = 0) -> dict[str, Tensor]:
    """Returns the observations of images and their parameters: every scan has its own lines, all the same coils.

    The middle of Fourier space is always sampled, of the other lines one in so many.
    """
    generator = torch.Generator().manual_seed(seed)
    count, side = len(x), x.shape[-1]
    distance = torch.fft.fftfreq(side).abs() * side
    lines = (torch.rand(count, side, generator=generator) < 1 / acceleration) | (distance < side / 16)
    sampled = lines.float()[:, None, None, None, :].expand(-1, 1, 1, side, -1)
    grid = torch.linspace(-1, 1, side)
    angles = torch.arange(coils) * 2 * torch.pi / coils
    away = (grid[:, None] - angles.sin()[:, None, None]).square() + (grid - angles.cos()[:, None, None]).square()
    seen = torch.polar((-away).exp(), angles[:, None, None].expand_as(away))
    seen = seen / seen.abs().square().sum(0).sqrt()
    parameters = {"sampled": sampled, "coils": as_channels(seen[None]).expand(count, -1, -1, -1, -1).contiguous()}
    clean = MultiCoil().apply(x, parameters)
    noise = torch.randn(clean.shape, generator=generator)
    return {"y": clean + sigma * MultiCoil().noise(noise, parameters), **parameters}


def main(output: str = "runs/mri", count: int = 256, side: int = 32, **settings: object) -> Tensor:
    """Trains on k-space alone, and returns reconstructions of scans that training has not seen."""
    scans, truth = measure(phantoms(count, side)), phantoms(8, side, seed=1)
    options = {"output": output, "operator": MultiCoil(), "sigma": 0.01, "data": DataConfig(clean=None), **settings}
    config = Config.with_preset("tiny", (2, side, side), **options)
    folder = emfast.train(config, callback=emfast.reporting.show, observations=scans)

    denoiser = emfast.diffusion.Denoiser.from_pretrained(folder)
    new = measure(truth, seed=1)
    parameters = {name: value for name, value in new.items() if name != "y"}
    operator = emfast.operators.Given(MultiCoil(), parameters)
    x = config.sampler(denoiser, new["y"], operator, sigma=0.01, ids=torch.arange(len(truth)))
    zeros = MultiCoil().adjoint(new["y"], parameters)
    for name, image in (("zero-filled", zeros), ("emfast", x)):
        print(f"{name}: {emfast.evaluation.psnr(image, truth).mean():.2f} dB")
    magnitude = torch.cat([as_complex(image).abs() for image in (truth, zeros, x)])[:, None] * 2 - 1
    print(emfast.reporting.save_grid(f"{output}/mri.png", magnitude, columns=len(truth)))
    return x


if __name__ == "__main__":
    main()
