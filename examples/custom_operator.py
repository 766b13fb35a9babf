"""An operator of your own: a detector with dead columns, others in every image.

In the whole EM run, from the folder that holds `examples/`:

    emfast train --config examples/demo.yaml --output runs/dead-columns \
        --operator examples.custom_operator.DeadColumns --operator.fraction 0.4

In Python: `python examples/custom_operator.py` writes dead_columns.png.
"""

import torch
from torch import Tensor

from emfast import random
from emfast.operators import Operator
from emfast.operators.base import Parameters


class DeadColumns(Operator):
    """Columns that are missing, each with a probability, drawn anew for every observation.

    Arguments:
        fraction: The probability that a column is dead.
        seed: The key: observation id always has the columns of (seed, id).
    """

    def __init__(self, fraction: float = 0.4, seed: int = 0) -> None:
        self.fraction, self.seed = fraction, seed

    def parameters(self, ids: Tensor, shape: tuple[int, ...]) -> Parameters:
        """Returns what distinguishes the observations; it must depend on nothing but the ids."""
        u = random.uniform((1, 1, shape[-1]), ids=ids, seed=random.derive(self.seed, "dead columns"))
        return {"alive": (u >= self.fraction).to(torch.float32)}  # (B, 1, 1, W)

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Returns A x."""
        return parameters["alive"].to(x.dtype) * x

    def adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns A^T y. Test it: (A x, y) = (x, A^T y) for random x and y."""
        return parameters["alive"].to(y.dtype) * y

    def project(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns y without what a file holds at dead columns, be it NaN. Only for operators that know such values."""
        return torch.where(parameters["alive"] != 0, y, 0)


def main() -> None:
    """Shows observations of the embedded sample, and checks the adjoint."""
    from emfast.data import load
    from emfast.reporting import save_grid

    operator = DeadColumns(fraction=0.4)
    x = load("sample:test", limit=16)[:].double()
    parameters = operator.parameters(torch.arange(16), tuple(x.shape[1:]))
    y = torch.randn_like(x)
    left, right = (operator.apply(x, parameters) * y).sum(), (x * operator.adjoint(y, parameters)).sum()
    print(f"(A x, y) = {left:.12f}, (x, A^T y) = {right:.12f}")
    print(save_grid("dead_columns.png", operator.observe(x.float(), sigma=0.05, seed=0)))


if __name__ == "__main__":
    main()
