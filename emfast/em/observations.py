"""The observations y = A x + n: fixed once, read by id."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from emfast._check import check
from emfast.data import Images
from emfast.operators import Given, Operator


class Observations:
    """The corrupted images that EM learns from, given as files or simulated from clean images.

    Simulated observations are drawn from (seed, id), so that they are the same in every round and every process; id is
    the row of the image. In files, row id belongs to observation id.

    Arguments:
        operator: The measurement operator.
        sigma: The standard deviation of the noise, in data units.
        images: Clean images to corrupt; the truth is then known. Give these or y.
        y: (N, ...) corrupted observations.
        given: Parameters of the operator that came with y, e.g. {"mask": (N, 1, H, W)}.
        seed: The key of the simulated noise.
    Raises:
        ValueError: If the operator does not fit the images.
    """

    def __init__(
        self,
        operator: Operator,
        *,
        sigma: float = 0.0,
        images: Images | None = None,
        y: Images | None = None,
        given: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        check((images is None) != (y is None), "Observations", "images or y", "to be given", "both or none of them")
        check(sigma >= 0, "Observations", "sigma", "to be >= 0", sigma)
        self.operator = Given(operator, given) if given else operator
        self.sigma, self.images, self.y, self.seed = sigma, images, y, seed
        self._check_operator()

    def __len__(self) -> int:
        return len(self.images if self.images is not None else self.y or ())

    def _check_operator(self) -> None:
        """Finds a misfit of operator and data now rather than hours later."""
        first = torch.tensor([0])
        name = type(self.operator).__name__
        for index in {0, len(self) - 1}:
            y = self.read(torch.tensor([index]))
        x = self.operator.adjoint(y, self.operator.parameters(first, tuple(y.shape[1:])))
        good = isinstance(x, Tensor) and x.dim() == 4
        check(good, name, "A^T y", "to be a tensor (B, C, H, W)", x)
        self.shape: tuple[int, int, int] = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
        back = tuple(self.operator.apply(x, self.operator.parameters(first, tuple(y.shape[1:]))).shape)
        check(back == tuple(y.shape), name, "A A^T y", f"to have the shape of y, {tuple(y.shape)}", back)

    def read(self, ids: Tensor) -> Tensor:
        """Returns the observations of the ids, (B, ...) float32."""
        if self.y is not None:
            return self.y[ids]
        return self.operator.observe(self.truth_of(ids), self.sigma, ids=ids, seed=self.seed)

    def truth_of(self, ids: Tensor) -> Tensor:
        """Returns the clean images of the ids, (B, C, H, W) float32.

        Raises:
            ValueError: If only observations are known.
        """
        check(self.images is not None, "truth_of", "images", "to be known", "observations only")
        return self.images[ids] if self.images is not None else torch.empty(0)

    def truth(self, ids: Tensor) -> Tensor | None:
        """Returns the clean images of the ids, or None if they are not known."""
        return None if self.images is None else self.truth_of(ids)

    @property
    def fingerprint(self) -> str:
        """A short hash of everything that makes the observations, the operator's parameters included."""
        source = self.images if self.images is not None else self.y
        ids = torch.tensor(sorted({0, len(self) - 1}))
        sample = self.read(ids).contiguous().numpy().tobytes()
        text = f"{source.fingerprint if source else ''} {self.sigma} {self.seed}".encode()
        return hashlib.blake2b(text + sample, digest_size=8).hexdigest()
