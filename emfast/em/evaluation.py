"""What is measured after a round."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emfast import random
from emfast._check import check_finite
from emfast.data import Images
from emfast.data.rows import Rows, rows_at_a_time
from emfast.diffusion import Denoiser
from emfast.em.observations import Observations
from emfast.graph import graphs
from emfast.samplers import Prior, data_misfit

if TYPE_CHECKING:
    from emfast.config import EvaluationConfig


class Evaluator:
    """Measures reconstructions against the truth and samples against reference images.

    Arguments:
        config: What to measure.
        reference: Clean images the Frechet distance compares with; None: no distance.
        shape: (C, H, W) of the images.
        device: Where features are computed.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        reference: Images | None,
        shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.shape = config, shape
        self.features = None
        auto = config.features == "auto"
        unknown = config.features == "none" or (auto and shape[0] not in (1, 3))
        if reference is not None and config.samples > 0 and not unknown:
            from emfast.evaluation import default_features, features, frechet_distance

            space = default_features(shape[0]) if auto else features(config.features, config.weights)
            self.features = space.to(device)
            self.distance = frechet_distance
            self.reference = self.features.extract(reference)

    def reconstructions(self, x: Tensor | Rows, ids: Tensor, observations: Observations) -> dict[str, float | None]:
        """Returns the means of psnr and ssim (None without the truth, or a window for SSIM to fit in) and misfit.

        There is no misfit where the operator can only be simulated.
        """
        from emfast.evaluation import psnr, ssim

        totals = torch.zeros(3, dtype=torch.float64)
        known, linear = observations.images is not None, not observations.operator.is_simulated
        window = min(x.shape[-2:]) >= 11  # the side of SSIM's window
        for rows in torch.arange(len(ids)).split(min(512, rows_at_a_time(x))):
            part, where = x[rows], ids[rows]
            if linear:
                totals[2] += data_misfit(part, observations.read(where), observations.operator, where).sum()
            truth = observations.truth(where)
            if truth is not None:
                totals[0] += psnr(part, truth).sum()
                totals[1] += ssim(part, truth).sum() if window else 0
        mean = (totals / len(ids)).tolist()
        found = {"psnr": known, "ssim": known and window, "misfit": linear}
        return {name: value if found[name] else None for name, value in zip(found, mean, strict=True)}

    def samples(
        self, denoiser: Denoiser, seed: int, callback: Callable[[int, int], None] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Returns samples of the model, (N, C, H, W), and their `fd` and the `features` it is measured in.

        Arguments:
            denoiser: The model, on the device to use.
            seed: The key of the samples: the same for every round, so that rounds can be compared.
            callback: Called as callback(done, in all).
        """
        count, steps = self.config.samples, self.config.steps
        if count == 0:
            return torch.empty(0, *self.shape), {"fd": None, "features": None}
        sampler = Prior(steps=steps, order=self.config.order)
        device = next(denoiser.parameters()).device
        parts: list[Tensor] = []
        total = -(-count // 128) * steps

        def progress(done: int, of: int) -> None:
            if callback is not None:
                callback(len(parts) * of + done, total)

        key = random.derive(seed, "samples")
        with graphs():
            for ids in torch.arange(count, device=device).split(128):
                parts.append(sampler.sample(denoiser, self.shape, ids=ids, seed=key, callback=progress).cpu())
        images = torch.cat(parts)
        fix = "Lower m_step.learning_rate, in another output folder"
        check_finite({"an image": images}, "train", "samples of the model", fix, RuntimeError)
        if self.features is None:
            return images, {"fd": None, "features": None}
        distance = self.distance(self.features.extract(images), self.reference)
        return images, {"fd": float(distance), "features": self.features.name}
