"""A blur and its misfit as ops, from what each blur has of its own: the taps, the specification, the sizes."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from emfast._library import register, run_cpp
from emfast.ops._images import Misfit, fake_misfit, misfit_gradients, misfit_of
from emfast.ops._tensors import DTYPES, unsupported


class Blur:
    """The ops emfast::<name>(x, *taps, circular, adjoint) and emfast::<name>_misfit(x, y, *taps, circular).

    Arguments:
        name: The op's name, that of its kernels, and the stem of their files.
        taps: The tensors of weights, in the schema language.
        reference: The specification of the blur.
        sizes: Returns what the C++ kernel is told about the taps.
    """

    def __init__(
        self, name: str, taps: str, *, reference: Callable[..., Tensor], sizes: Callable[..., tuple[int, ...]]
    ) -> None:
        self.name, self.reference, self.sizes = name, reference, sizes
        self.blur = register(
            name,
            f"(Tensor x, {taps}, bool circular, bool adjoint) -> Tensor",
            reference=reference,
            fake=_fake,
            backward=self._backward,
            setup_context=_setup,
            triton=name,
            cpp=self._cpp,
            unsupported=unsupported,
        )
        self.misfit = register(
            f"{name}_misfit",
            f"(Tensor x, Tensor y, {taps}, bool circular) -> (Tensor, Tensor, Tensor)",
            reference=self._reference_misfit,
            fake=fake_misfit,
            backward=self._misfit_backward,
            setup_context=_setup_misfit,
            triton=name,
            cpp=self._cpp_misfit,
            unsupported=unsupported,
        )

    def _reference_misfit(self, x: Tensor, y: Tensor, *rest: Any) -> Misfit:
        """The specification of the misfit."""
        return misfit_of(x, y, *(lambda v, a=a: self.reference(v, *rest, a) for a in (False, True)))

    def _cpp(self, x: Tensor, *rest: Any) -> Tensor:
        *taps, circular, adjoint = rest
        result = _fake(x)
        self._run(self.name, [x], taps, [result], circular, adjoint)
        return result

    def _cpp_misfit(self, x: Tensor, y: Tensor, *rest: Any) -> Misfit:
        *taps, circular = rest
        results = fake_misfit(x)
        self._run(f"{self.name}_misfit", [x, y], taps, results, circular)
        return results

    def _run(
        self, name: str, images: Sequence[Tensor], taps: Sequence[Tensor], results: Sequence[Tensor], *flags: bool
    ) -> None:
        tensors = [t.contiguous() for t in images] + [t.float().contiguous() for t in taps]
        sizes = (DTYPES[images[0].dtype], *images[0].shape, *self.sizes(*taps))
        run_cpp(name, [*tensors, *results], sizes, *flags)

    def _backward(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        taps = ctx.saved_tensors
        return self.blur(grad, *taps, ctx.circular, not ctx.adjoint), *[None] * (len(taps) + 2)

    def _misfit_backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        residual, *taps = ctx.saved_tensors
        maps = (lambda v, a=a: self.blur(v, *taps, ctx.circular, a) for a in (False, True))
        return *misfit_gradients(residual, grads, *maps), *[None] * (len(taps) + 1)


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *taps, ctx.circular, ctx.adjoint = inputs
    ctx.save_for_backward(*taps)


def _setup_misfit(ctx: Any, inputs: tuple[Any, ...], output: Misfit) -> None:
    _, _, *taps, ctx.circular = inputs
    ctx.save_for_backward(output[0], *taps)
    ctx.set_materialize_grads(False)
