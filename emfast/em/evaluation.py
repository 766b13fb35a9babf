"""What is measured after a round."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emfast import random
from emfast._check import check_finite
from emfast._files import remove_folder
from emfast.data import Images
from emfast.data.rows import Rows, rows_at_a_time
from emfast.data.store import Store
from emfast.diffusion import Denoiser
from emfast.em.filling import fill
from emfast.em.observations import Observations
from emfast.em.processes import Processes
from emfast.em.queue import clear, shared
from emfast.em.state import SAMPLES, RunFolder
from emfast.samplers import Prior, data_misfit

if TYPE_CHECKING:
    from emfast.config import EvaluationConfig

BATCH = 128  # samples drawn together: rounding depends on it


class Evaluator:
    """Measures reconstructions against the truth and samples against reference images.

    Arguments:
        config: What to measure.
        reference: Clean images the Frechet distance compares with; None: no distance.
        shape: (C, H, W) of the images.
        device: Where it is computed.
        processes: Those that draw the samples together; the main one measures.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        reference: Images | None,
        shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
        processes: Processes | None = None,
    ) -> None:
        self.config, self.shape, self.device = config, shape, torch.device(device)
        self.processes = processes or Processes()
        self.features = None
        auto = config.features == "auto"
        unknown = config.features == "none" or (auto and shape[0] not in (1, 3))
        if reference is not None and config.samples > 0 and not unknown:
            from emfast.evaluation import default_features, features, frechet_distance

            space = default_features(shape[0]) if auto else features(config.features, config.weights)
            self.features = space.to(self.device)
            self.distance = frechet_distance
            self.reference = self.features.extract(reference) if self.processes.main else torch.empty(0)

    @property
    def count(self) -> int:
        """How many samples are drawn in a round: without a distance as many as the pictures show."""
        config = self.config
        return config.samples if self.features is not None else min(config.samples, config.pictures**2)

    def reconstructions(self, x: Tensor | Rows, ids: Tensor, observations: Observations) -> dict[str, float | None]:
        """Returns the means of psnr and ssim (None without the truth, or a window for SSIM to fit in) and misfit.

        There is no misfit where the operator can only be simulated.

        Arguments:
            x: (n, C, H, W) the reconstructions, in data units.
            ids: (n,) ids of their observations.
            observations: The observations of the run.
        """
        from emfast.evaluation import psnr, ssim

        totals = torch.zeros(3, dtype=torch.float64)
        known, linear = observations.images is not None, not observations.operator.is_simulated
        window = min(x.shape[-2:]) >= 11  # the side of SSIM's window
        for rows in torch.arange(len(ids)).split(min(512, rows_at_a_time(x))):
            part, where = x[rows].to(self.device), ids[rows]
            if linear:
                y = observations.read(where).to(self.device)
                totals[2] += data_misfit(part, y, observations.operator, where.to(self.device)).sum().cpu()
            truth = observations.truth(where)
            if truth is not None:
                truth = truth.to(self.device)
                totals[0] += psnr(part, truth).sum().cpu()
                totals[1] += ssim(part, truth).sum().cpu() if window else 0
        mean = (totals / len(ids)).tolist()
        found = {"psnr": known, "ssim": known and window, "misfit": linear}
        return {name: value if found[name] else None for name, value in zip(found, mean, strict=True)}

    def samples(
        self, denoiser: Denoiser, folder: RunFolder, number: int, seed: int, callback: Callable[[int, int], None]
    ) -> tuple[Tensor | Rows, dict[str, Any]]:
        """Returns samples of the model, (N, C, H, W), and their `fd` and the `features` it is measured in.

        They are drawn by all processes, and lie in the folder of the round until it is finished: what was drawn before
        an interruption is not drawn again.

        Arguments:
            denoiser: The model, on the device to use.
            folder: The folder of the run.
            number: The round.
            seed: The key of the samples: the same for every round, so that rounds can be compared.
            callback: Called as callback(done, in all).
        """
        count = self.count
        if count == 0:
            return torch.empty(0, *self.shape), {"fd": None, "features": None}
        store = self._store(folder.round(number) / SAMPLES, number, seed)
        if store.missing:
            place = self.processes.rank / self.processes.world
            draw = partial(self._draw, denoiser, random.derive(seed, "samples"))
            with shared(store, place=place, check=self.processes.check) as queue:
                fill(
                    store,
                    torch.arange(count),
                    draw,
                    self.device,
                    batch_size=BATCH,
                    work=queue,
                    measure=self._measure,
                    callback=callback,
                )
        self.processes.wait()  # all look before the samples go
        if not self.processes.main:
            return torch.empty(0, *self.shape), {}
        clear(store)
        if self.features is None:
            return store.rows(), {"fd": None, "features": None}
        distance = self.distance(store.load("features"), self.reference)
        return store.rows(), {"fd": float(distance), "features": self.features.name}

    def _store(self, folder: Path, number: int, seed: int) -> Store:
        """Returns the store of the samples; one that lacks the features, of references that came later, begins anew."""
        features = None if self.features is None else self.features.name
        identity = {"round": number, "seed": seed, "features": features}
        arguments: dict[str, Any] = {"count": self.count, "shard_size": BATCH, "identity": identity}
        if self.processes.main:
            try:
                Store(folder, **arguments)
            except ValueError:
                remove_folder(folder)
                Store(folder, **arguments)
        self.processes.wait()
        return Store(folder, **arguments)

    def _draw(self, denoiser: Denoiser, key: int, ids: Tensor, callback: Callable[[int, int], None]) -> Tensor:
        sampler = Prior(steps=self.config.steps, order=self.config.order)
        images = sampler.sample(denoiser, self.shape, ids=ids.to(self.device), seed=key, callback=callback).cpu()
        fix = "Lower m_step.learning_rate, in another output folder"
        check_finite({"an image": images}, "train", "samples of the model", fix, RuntimeError)
        return images

    def _measure(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the features of samples, (N, D), as another tensor of their shard."""
        return {} if self.features is None else {"features": self.features.extract(images)}
