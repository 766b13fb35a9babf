"""Images of other sizes and batches of other lengths are no reason to compile an op anew."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from emfast import ops, random

KERNEL, TABLE, STEP = torch.ones(1, 1, 3, 3), torch.ones(4, 9, dtype=torch.float64), torch.tensor(1)
CALLS = {
    "normal": lambda x: random.normal((4, *x.shape[2:]), ids=torch.arange(x.shape[0]), seed=4),
    "uniform": lambda x: random.uniform((4, *x.shape[2:]), ids=torch.arange(x.shape[0]), seed=4),
    "sampler_update": lambda x: ops.sampler_update(x, x, None, TABLE, STEP, ids=torch.arange(x.shape[0]), seed=3),
    "mask_misfit": lambda x: ops.mask_misfit(x, 2 * x, x[:1, :1])[1],
    "blur": lambda x: ops.blur(x, KERNEL),
    "blur_misfit": lambda x: ops.blur_misfit(x, 2 * x, KERNEL)[1],
    "separable_blur": lambda x: ops.separable_blur(x, KERNEL[0, 0, 0], KERNEL[0, 0, 1]),
    "separable_blur_misfit": lambda x: ops.separable_blur_misfit(x, 2 * x, KERNEL[0, 0, 0], KERNEL[0, 0, 0])[1],
    "residual_sum": lambda x: ops.residual_sum(x, 2 * x, bias=KERNEL.new_ones(4), scale=0.5),
    "group_norm_silu": lambda x: ops.group_norm_silu((x, x), 2),
    "attention": lambda x: ops.attention(x.mT, x.mT, x.mT, scale=1.0),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_op_is_compiled_once(name):
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(CALLS[name], backend=counter, fullgraph=True, dynamic=True)
    for shape in ((2, 4, 5, 6), (3, 4, 7, 8), (5, 4, 9, 10)):
        x = torch.ones(shape)
        assert torch.equal(compiled(x), CALLS[name](x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", CALLS)
def test_an_op_is_exported_for_batches_of_any_length(name):
    class Module(torch.nn.Module):
        def forward(self, x):
            return CALLS[name](x)

    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    exported = torch.export.export(Module(), (torch.ones(3, 4, 5, 6),), dynamic_shapes=shapes).module()
    x = torch.ones(7, 4, 5, 6)
    assert torch.equal(exported(x), CALLS[name](x))
