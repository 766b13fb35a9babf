"""Muon: an optimizer whose updates of matrices have singular values of one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

NARROW = 8  # what has fewer channels on one side, such as the first and the last layer, is left to AdamW
SHARE = 0.2  # the size of AdamW's updates, over its learning rate
STEPS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)  # of the iteration: singular values from 0.7 to 1.2
TINY = 1e-14  # no gradient, no update


class Muon(torch.optim.AdamW):
    r"""AdamW, but that of matrices and of convolutions' kernels the momentum's nearest orthogonal matrix is the update.

    .. math:: W \leftarrow (1 - \eta \lambda) W - 0.2 \, \eta \sqrt{\max(m, n)} \, U V^\top, \quad M = U S V^\top

    for W of m rows and n columns. The factor gives the update the size that AdamW's has, so that one learning rate
    serves both. All directions of a layer learn alike, however small their gradients: few steps go further.

    Arguments:
        parameters: The parameters.
        lr: The learning rate.
        weight_decay: That of AdamW.
        fused: Whether AdamW is.
        momentum: How much of the momentum is kept in a step; the update looks ahead by it (Nesterov's).

    References:
        | Muon: An optimizer for hidden layers in neural networks (Jordan, 2024), kellerjordan.github.io/posts/muon
        | Muon is Scalable for LLM Training (Liu et al., 2025), arXiv 2502.16982
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, weight_decay: float, fused: bool = True, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, fused=fused)
        self.momentum = momentum
        self.stacks: dict[tuple[int, ...], list[Tensor]] = {}
        for p in self.param_groups[0]["params"]:
            if p.ndim >= 2 and min(p.shape[:2]) >= NARROW:
                self.stacks.setdefault(tuple(p.shape), []).append(p)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Makes one step; matrices of one shape, or of one height, together."""
        rate, decay = (self.param_groups[0][name] for name in ("lr", "weight_decay"))
        work = [[(p, p.grad) for p in stack if p.grad is not None] for stack in self.stacks.values()]
        for pairs in work:
            for p, _ in pairs:
                p.grad = None  # AdamW passes it over
        super().step()
        work = list(filter(None, work))
        for pairs, update in zip(work, orthogonal([self._ahead(pairs) for pairs in work]), strict=True):
            weights, size = [p for p, _ in pairs], SHARE * math.sqrt(max(update.shape[1:]))
            moves = [x.reshape(p.shape) for x, p in zip(update, weights, strict=True)]
            torch._foreach_mul_(weights, 1 - rate * decay)
            torch._foreach_add_(weights, moves, alpha=-rate * size)

    def _ahead(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Returns the momenta of weights with their gradients, a step ahead, as matrices (K, m, n)."""
        weights, gradients = [p for p, _ in pairs], [gradient for _, gradient in pairs]
        for p, gradient in pairs:
            if p not in self.state:  # AdamW looks for a step in every state that is loaded
                self.state[p] |= {"step": torch.zeros(()), "momentum": torch.zeros_like(gradient)}
        momenta = [self.state[p]["momentum"] for p in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
        return torch.stack(torch._foreach_lerp(gradients, momenta, self.momentum)).flatten(2)


def orthogonal(stacks: Sequence[Tensor]) -> list[Tensor]:
    r"""Returns matrices of the same singular vectors and singular values near one, by a Newton-Schulz iteration.

    Its steps multiply by polynomials of the Gram matrix, X <- p(X X^T) X, which all commute: they are made on the Gram
    matrices, and the matrices themselves, most of them much longer, are read twice. Those of one height go together.

    Arguments:
        stacks: (K, m, n) matrices each.
    """
    a, b, c = COEFFICIENTS
    wide = [x if x.shape[1] <= x.shape[2] else x.mT for x in stacks]
    heights: dict[int, list[int]] = {}
    for i, x in enumerate(wide):
        heights.setdefault(x.shape[1], []).append(i)
    found = dict[int, Tensor]()
    for height, places in heights.items():
        gram = torch.cat([wide[i] @ wide[i].mT for i in places])
        square = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp_min(TINY)  # of the Frobenius norm
        gram, product = gram / square, square.rsqrt() * torch.eye(height, dtype=gram.dtype, device=gram.device)
        for step in range(STEPS):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            product = factor @ product
            if step < STEPS - 1:
                gram = factor @ (factor @ gram)
        parts = product.split([len(wide[i]) for i in places])
        found |= {i: part @ wide[i] for i, part in zip(places, parts, strict=True)}
    return [found[i] if found[i].shape == x.shape else found[i].mT for i, x in enumerate(stacks)]
