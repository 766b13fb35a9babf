"""The observations y = A x + n: fixed once, read by id."""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from emfast._check import check, check_sigma
from emfast.data import Images
from emfast.data.file_rows import collect
from emfast.data.images import fingerprint
from emfast.data.observations import open_observations
from emfast.data.origin import Origin, read_origin
from emfast.data.patches import cut_patches, patch_places, sharing_pixels
from emfast.data.rows import Rows, picked, pieces
from emfast.em.observing_operator import check_known, operator_of, shows_pixels
from emfast.em.units import check_files, check_values
from emfast.operators import Given, Operator
from emfast.operators.given import MEANT, checked
from emfast.operators.linearity import check_linear, check_simulated
from emfast.random import Generator


class _Read(Mapping[str, Tensor]):
    """Parameters that know which of them were read."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters, self.read = parameters, set[str]()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return self.parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)


class Observations:
    """The corrupted images that EM learns from, given as files or simulated from clean images.

    Simulated observations are drawn from (seed, id), so that they are the same in every round and every process; id is
    the row of the image. In files, row id belongs to observation id.

    Arguments:
        operator: The measurement operator.
        sigma: The standard deviation of the noise, in data units.
        images: Clean images to corrupt; the truth is then known. Give these or y.
        y: (N, ...) corrupted observations, float32, or such rows in a file; where nothing is observed they may hold
            anything, NaN too.
        given: Parameters of the operator that came with y, e.g. {"mask": (N, 1, H, W)}.
        seed: The key of the simulated noise.
        name: What the errors call y.
        guessed: Whether sigma is a guess, by which y is not judged.
        origin: The files that y was imported from, and their range.
    Raises:
        ValueError: If the operator does not fit the images, or an observed value is not finite; if y is far outside
            the range that images in [-1, 1] and the noise give it, where the operator knows its `gain`.
    """

    def __init__(
        self,
        operator: Operator,
        *,
        sigma: float = 0.0,
        images: Images | None = None,
        y: Tensor | Rows | None = None,
        given: Mapping[str, Tensor | Rows] | None = None,
        seed: int = 0,
        name: str = "y",
        guessed: bool = False,
        origin: Origin | None = None,
    ) -> None:
        check((images is None) != (y is None), "Observations", "images or y", "to be given", "both or none of them")
        check_sigma(sigma, "Observations")
        self.operator = Given(operator, given) if given else operator
        self.sigma, self.noise, self.images, self.y, self.seed = sigma, sigma, images, y, seed
        self.origin = origin
        source = images if images is not None else y
        # (N,) and (M,) int64: the ids of those that are learned from, and of those that are not, ascending.
        self.ids, self.held_out = torch.arange(0 if source is None else len(source)), torch.empty(0, dtype=torch.int64)
        self.places: Tensor | None = None  # (N, 3), where each is a patch of a larger one: see `patch_places`
        rows = {key: len(value) for key, value in (given or {}).items()}
        requirement = f"to have a row for each of the {len(self)} observations"
        check(set(rows.values()) <= {len(self)}, "Observations", "given", requirement, rows)
        if y is not None:
            fix = "Give real and imaginary parts as channels" if y.dtype.is_complex else None
            check(y.dtype == torch.float32, "Observations", name, "to be float32", y, fix, error=TypeError)
        self._check_operator(given or {})
        if y is not None:
            check_values(self.operator, y, name, math.inf if guessed else sigma, imported=origin is not None)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        operator: Operator | None,
        *,
        usual: Operator | None = None,
        sigma: float = 0.0,
        guessed: bool = False,
        limit: int | None = None,
        patch: int | None = None,
    ) -> Observations:
        """Returns the observations of a file, see `load_observations`.

        Arguments:
            path: The file.
            operator: The measurement operator; parameters in the file go before its own. None: that of the parameters
                in the file.
            usual: The operator instead of None, if it belongs to the parameters in the file, or needs none.
            sigma: The standard deviation of the noise, in the units of the files if they were imported, else in data
                units.
            guessed: Whether sigma is a guess, by which the values are not judged.
            limit: Only the first so many.
            patch: Cut each into patches of this side, with its mask, and leave out those that show nothing.
        Raises:
            ValueError: If no operator is named and the file does not tell.
        """
        y, given = open_observations(path)
        origin = read_origin(path)
        sigma = sigma if origin is None else sigma / origin.range.half
        if operator is None:
            operator = operator_of(y, given, str(path), usual=usual)
        first = slice(0, limit)
        y, given = picked(y, first), {name: picked(value, first) for name, value in given.items()}
        places = None
        if patch is not None:
            y, given, places = patches_of(y, checked(operator, given), operator, patch)
        found = cls(operator, sigma=sigma, y=y, given=given, name=f"{path}:y", guessed=guessed, origin=origin)
        found.places = places
        check_known(operator, y, given, str(path))
        return found

    def assuming(self, sigma: float) -> Observations:
        """Returns the same observations where those who read `sigma` take their noise to be another."""
        other = copy.copy(self)
        other.sigma = sigma
        return other

    def holding_out(self, count: int) -> Observations:
        """Returns the same observations of which some, spread evenly, are kept for measuring: see `held_out`.

        Arguments:
            count: How many.
        Raises:
            ValueError: If that is more than half of them.
        """
        most, fix = len(self) // 2, "Give more observations, or hold out fewer"
        check(count <= most, "train", "data.held_out", f"to be at most half of {len(self)} observations", count, fix)
        other = copy.copy(self)
        other.held_out = torch.linspace(0, len(self) - 1, count + 2)[1:-1].round().long()
        learned = torch.ones(len(self), dtype=torch.bool)
        learned[other.held_out] = False
        if self.places is not None:  # the last patches of an image may overlap, and would be known in part
            learned &= ~sharing_pixels(self.places, self.places[other.held_out], self.shape[-1])
            requirement = "to leave as many patches to learn from, none of which shares pixels with those held out"
            check(int(learned.sum()) >= count, "train", "data.held_out", requirement, count, fix)
        other.ids = learned.nonzero()[:, 0]
        return other

    def __len__(self) -> int:
        return len(self.ids)

    def _check_operator(self, given: Mapping[str, Tensor | Rows]) -> None:
        """Finds a misfit of operator and data now rather than hours later."""
        inner = self.operator.operator if isinstance(self.operator, Given) else self.operator
        name = type(inner).__name__
        if self.y is not None and self.operator.observes_images:
            check(self.y.ndim == 4, name, "y", "to have shape (N, C, H, W)", self.y, "C is 1 for grey images")
        for index in {0, len(self) - 1}:
            y = self.read(torch.tensor([index]))
        self.observed = tuple(y.shape[1:])
        fix = "Give real and imaginary parts as channels" if y.is_complex() else None
        check(y.is_floating_point(), name, "y", "to be real", y, fix, TypeError)
        parameters = _Read(self.operator.parameters(torch.tensor([0]), self.observed))
        x = self.operator.as_image(y, parameters)
        check(x.dim() == 4, name, "A^T y", "to be a tensor (B, C, H, W)", x)
        self.shape: tuple[int, int, int] = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
        if not self.operator.is_simulated:
            back = self.operator.apply(x, parameters)
            check(back.shape == y.shape, name, "A A^T y", f"to have the shape of y, {tuple(y.shape)}", back)
            self.operator.misfit(x, y, parameters)
            self.operator.noise(y, parameters)
        else:
            self.operator.simulate(x, parameters, Generator(torch.tensor([0]), 1), self.sigma)
        if self.origin is not None:
            check_files(self.operator, y, parameters, self.origin.range)
        unread = [key for key in sorted(MEANT) if key in given and key not in parameters.read]
        fix = "Name the operator that reads it (masks are called mask, kernels kernel), or take it out of the file"
        check(not unread, name, "the observations", "to bring parameters that it reads", " and ".join(unread), fix)
        # As many as there are channels, for a parameter without a channel axis is then broadcast without a word.
        count = min(max(2, self.shape[0]), 16)
        ids = torch.linspace(0, len(self) - 1, count).round().long()
        if self.operator.is_simulated:
            check_simulated(self.operator, ids, self.shape, self.observed, self.sigma)
        else:
            check_linear(self.operator, ids, self.shape, self.observed)

    def read(self, ids: Tensor) -> Tensor:
        """Returns the observations of the ids, (B, ...) float32, as the operator can give them: see its `project`."""
        if self.y is not None:
            y = self.y[ids]
            return self.operator.project(y, self.operator.parameters(ids, tuple(y.shape[1:])))
        return self.operator.observe(self.truth_of(ids), self.noise, ids=ids, seed=self.seed)

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

    def as_images(self, ids: Tensor) -> Tensor:
        """Returns what the observations of the ids show as images, (B, C, H, W) float32."""
        return self.operator.as_image(self.read(ids), self.operator.parameters(ids, self.observed))

    def pictures(self, ids: Tensor) -> Tensor:
        """Returns the observations of the ids as pictures show them; in data units, if they are no images in those."""
        return self.as_images(ids) if self.operator.is_simulated else self.read(ids)

    @property
    def channels(self) -> int:
        """The number of channels in which a conditional network is shown an observation."""
        one = torch.tensor([0])
        parameters = self.operator.parameters(one, self.observed)
        return int(self.operator.condition(self.read(one), parameters).shape[1])

    def mask(self, ids: Tensor) -> Tensor | None:
        """Returns where pixels of the ids are observed, (B, 1, H, W) of 0 and 1; None if the operator has no mask."""
        y = self.read(ids[:1])
        mask = self.operator.parameters(ids, tuple(y.shape[1:])).get("mask")
        good = mask is not None and mask.ndim == 4 and mask.shape[1] == 1 and mask.shape[-2:] == y.shape[-2:]
        return mask.expand(len(ids), -1, -1, -1).cpu() if mask is not None and good else None

    @property
    def fingerprint(self) -> str:
        """A short hash of what the observations are made of, but for their operator."""
        source = self.images.fingerprint if self.images is not None else ""
        source = fingerprint(self.y) if self.y is not None else source
        return hashlib.blake2b(f"{source} {self.noise} {self.seed}".encode(), digest_size=8).hexdigest()

    @property
    def operator_fingerprint(self) -> str:
        """What tells the operator from others: a hash of the parameters that came with y, and what it makes of images.

        Of the latter a few rounded numbers, for two machines do not compute alike to the last bit. A function or a
        class of a user's is known by nothing else: its code may be another tomorrow.
        """
        given = self.operator.given if isinstance(self.operator, Given) else {}
        text = "".join(f"{name} {fingerprint(given[name])} " for name in sorted(given)).encode()
        generator = torch.Generator().manual_seed(0)
        ids = torch.tensor(sorted({int(self.ids[0]), int(self.ids[-1])}))
        x = torch.rand(len(ids), *self.shape, generator=generator) * 2 - 1
        y = self.operator.observe(x, ids=ids).double().flatten()
        size = torch.linalg.vector_norm(y)
        shares = torch.randn(8, len(y), generator=generator, dtype=torch.float64) @ (y / size.clamp_min(1e-30))
        numbers = [f"{size:.1e}", *(f"{round(share, 2) + 0.0:.2f}" for share in shares.tolist())]
        return " ".join([hashlib.blake2b(text, digest_size=8).hexdigest(), *numbers])


def patches_of(
    y: Tensor | Rows, given: Mapping[str, Tensor | Rows], operator: Operator, size: int
) -> tuple[Tensor | Rows, dict[str, Tensor | Rows], Tensor]:
    """Returns observations and their masks, cut into patches, and where these are from; none that show nothing.

    Arguments:
        y: (N, C, H, W) observations.
        given: The parameters that came with them, checked.
        operator: The operator.
        size: The side of the patches.
    """
    fix = "Cut the images before they are observed"
    alone = shows_pixels(operator) and given.keys() <= {"mask"} and y.ndim == 4
    check(alone, "train", "data.patch", "to stand beside Mask or Identity", type(operator), fix)
    places = patch_places(len(y), (y.shape[-2], y.shape[-1]), size)
    cut = {
        name: collect(cut_patches(part, size, "train") for _, part in pieces(rows))
        for name, rows in {"y": y, **given}.items()
    }
    y = cut.pop("y")
    if not cut:
        return y, {}, places
    shown = torch.cat([part.flatten(1).any(1) for _, part in pieces(cut["mask"])]).nonzero()[:, 0]
    return picked(y, shown), {"mask": picked(cut["mask"], shown)}, places[shown]
