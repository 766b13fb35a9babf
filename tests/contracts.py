"""The shared checks."""

import copy
import dataclasses
import os
from contextlib import contextmanager
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from emfast._library import OPS, extension
from emfast.adapters import accelerate, restore
from emfast.adapters.parts import original_class as original
from emfast.compilation.precompile import recording
from emfast.diffusion import Denoiser, VPSchedule
from emfast.dispatch import TABLE, way
from emfast.dispatch import backend as forced
from emfast.operators import Operator

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last)
LAYOUTS = ("contiguous", "channels_last", "permuted")
# Triton's interpreter is slow, and one thread that computes in numpy: two dtypes and two layouts are tried there, all
# four pairs for the first sample, two for each of the others, once; and of the registration, which is the same for
# every backend, what asks for no tracing.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def check_op(function, native, samples, *, backend, device, dtypes=DTYPES):
    """Checks a public function on one backend against the same function in native torch.

    Values and all gradients by the accuracy rule, in every dtype and layout, and the same bits every time; opcheck and
    a full-graph compile; float64 gradcheck of the reference. The last three run on the first sample, a small one, and
    those of the registration for the best instruction set alone: it is the same for all.

    A sample is a dict of arguments, where a tuple stands for a random tensor of that shape, and a tuple of tuples for a
    tuple of tensors.
    """
    with forced("reference"):  # with none, it may be native torch that runs
        ops = {call[0] for call in record(function, draw(samples[0], torch.float32, "contiguous", device))}
    for op in ops:
        require(op._opname, backend, device)
    dtypes, layouts = (dtypes[:2], LAYOUTS[:2]) if INTERPRETED else (dtypes, LAYOUTS)
    with forced(backend):
        for index, sample in enumerate(samples):
            for (i, dtype), (j, layout) in product(enumerate(dtypes), enumerate(layouts)):
                if INTERPRETED and index and (i + j + index) % 2:
                    continue
                check_accuracy(function, native, draw(sample, dtype, layout, device), f"{sample} {dtype} {layout}")
        if backend == "cpp" and extension().instruction_set() != extension().instruction_sets()[-1]:
            return
        for layout in layouts[1:] if INTERPRETED else layouts:
            arguments = draw(samples[0], torch.float32, layout, device)
            check_registration(function, arguments, quick=INTERPRETED or layout != "channels_last")
            if layout != "permuted" and not INTERPRETED:
                check_compile(function, arguments)
        if backend == "reference":
            arguments = leaves_of(draw(samples[0], torch.float64, "contiguous", device))
            leaves = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
            assert torch.autograd.gradcheck(lambda *_: function(**arguments), leaves)


def require(name, backend, device):
    """Skips the test where a backend of an op does not exist or cannot run."""
    found = way(name, backend)
    reason = f"there is no {backend} kernel" if found is None else found.missing(device.type)
    if reason:
        pytest.skip(f"{name} on {backend}: {reason}")


def replace_way(monkeypatch, subject, name, **changes):
    """Replaces what is in the table of ways for one of them."""
    ways = tuple(dataclasses.replace(way, **changes) if way.name == name else way for way in TABLE[subject])
    monkeypatch.setitem(TABLE, subject, ways)


def check_accuracy(function, native, arguments, what):
    """Error at most twice native torch's in the same dtype, three times for gradients, plus rounding; repeatable."""
    exact = evaluate(native, tree_map_only(Tensor, Tensor.double, arguments))
    usual, ours = (evaluate(f, arguments) for f in (native, function))
    again = ours if INTERPRETED else evaluate(function, arguments)
    for index, (r, n, k) in enumerate(zip(exact, usual, ours, strict=True)):
        name = f"{'gradient' if index else 'value'} {index} of {what}"
        assert k.dtype == n.dtype, name
        assert k.shape == n.shape, name
        assert torch.equal(k, again[index]), f"{name} is not repeatable"
        for norm in (max_norm, rms_norm):
            # In the interpreter numpy sums, in an order that differs from one processor to the next.
            rounding = (2 if INTERPRETED else 1) * torch.finfo(k.dtype).eps * norm(r)
            allowed = (3 if index else 2) * norm(n - r) + rounding
            assert norm(k - r) <= allowed, f"{name}: {norm.__name__} {norm(k - r):.2e} > {allowed:.2e}"


QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")


def check_registration(function, arguments, quick=False):
    """torch.library.opcheck of every op that forward and backward call: schema, fake tensors, autograd, tracing.

    Quick is without tracing, which takes ten times as long as the rest.
    """
    tests = {"test_utils": QUICK} if quick else {}
    for op, args in record(function, arguments):
        gradient = OPS[op._opname]

        def leaf(tensor, gradient=gradient):
            return tensor.detach().clone().requires_grad_(gradient and tensor.is_floating_point())

        torch.library.opcheck(op, tree_map_only(Tensor, leaf, args), **tests)


def check_compile(function, arguments):
    """torch.compile captures forward and backward without a graph break, and gives the same bits."""
    torch._dynamo.reset()  # what other tests compiled counts against a limit
    compiled = torch.compile(lambda **kwargs: function(**kwargs), fullgraph=True, backend="aot_eager")
    for k, n in zip(evaluate(compiled, arguments), evaluate(function, arguments), strict=True):
        assert torch.equal(k, n)
        assert k.stride() == n.stride()


def record(function, arguments):
    """Returns the emfast ops, with their arguments, that forward and backward call."""
    with recording() as calls:
        evaluate(function, arguments)
    return calls


def evaluate(function, arguments):
    """Returns the value and its gradients to all tensors, for a fixed random cotangent in the strides of the value."""
    arguments = leaves_of(arguments)
    leaves = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    value = function(**arguments)
    cotangent = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    cotangent = torch.empty_like(value).copy_(cotangent.bfloat16())
    return [value.detach(), *torch.autograd.grad(value, leaves, cotangent)]


def leaves_of(arguments):
    """Returns arguments with every tensor a leaf that requires grad, its strides kept."""
    return tree_map_only(Tensor, lambda t: t.detach().clone().requires_grad_(), arguments)


def draw(sample, dtype, layout, device):
    """Returns the arguments that a sample stands for."""
    generator = torch.Generator().manual_seed(0)

    def value(argument):
        if not isinstance(argument, tuple):
            return argument
        if isinstance(argument[0], tuple):
            return tuple(map(value, argument))
        return arrange((torch.randn(argument, generator=generator) + 0.5).to(dtype), layout).to(device)

    return {key: value(argument) for key, argument in sample.items()}


def arrange(x, layout):
    """Returns a tensor of four dimensions in another memory layout."""
    if x.dim() != 4 or layout == "contiguous":
        return x
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)


@contextmanager
def any_order():
    """Lets torch choose its kernels in the block, where deterministic ones are wrong.

    The gradient of torch 2.11's reflection padding on a GPU is, where both mirror images of a pixel lie in the margins.
    """
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


def in_layouts(function, *tensors):
    """Returns a function's results in two layouts: native torch sums in an order of each."""
    layouts = ("contiguous", "channels_last")
    return [function(*(t if t is None else arrange(t.contiguous(), layout) for t in tensors)) for layout in layouts]


def follows_the_rule(k, r, usual, times):
    """The accuracy rule for values, where `usual` holds native torch's in several orders of summation."""
    for norm in (max_norm, rms_norm):
        allowed = times * max(norm(n - r) for n in usual) + torch.finfo(k.dtype).eps * norm(r)
        assert norm(k - r) <= allowed, f"{norm.__name__} {norm(k - r):.2e} > {allowed:.2e}"


def max_norm(x):
    """Returns the largest magnitude, in float64."""
    return x.double().abs().max().item()


def rms_norm(x):
    """Returns the root mean square, in float64."""
    return x.double().square().mean().sqrt().item()


def check_operator(operator, shape):
    """<A x, y> = <x, A^T y> to 1e-10 in float64; A^T is the gradient of the misfit; images do not mix.

    The projection of y loses nothing that A^T sees, and keeps what A gives. A x is within the gain.
    """
    ids = torch.tensor([3, 0, 11])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, *shape, dtype=torch.float64, generator=generator)
    y = operator.observe(x, ids=ids)
    parameters = operator.parameters(ids, tuple(y.shape[1:]))
    v = torch.randn(y.shape, dtype=torch.float64, generator=generator)
    left = (operator.apply(x, parameters) * v).flatten(1).sum(1)
    right = (x * operator.adjoint(v, parameters)).flatten(1).sum(1)
    scale = x.flatten(1).norm(dim=1) * v.flatten(1).norm(dim=1)
    assert ((left - right).abs() <= 1e-10 * scale).all()

    leaf = x.clone().requires_grad_()
    misfit = 0.5 * (v - operator.apply(leaf, parameters)).square().sum()
    (gradient,) = torch.autograd.grad(misfit, leaf) if misfit.requires_grad else (torch.zeros_like(x),)
    expected = -operator.adjoint(v - operator.apply(x, parameters), parameters)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)

    c = torch.tensor(0.3, dtype=torch.float64)
    ours = operator.regularised_inverse(v, c, parameters, iterations=200)
    by_iteration = Operator.regularised_inverse(operator, v, c, parameters, iterations=200)
    normal = operator.adjoint(operator.apply(ours, parameters), parameters) + c * ours
    torch.testing.assert_close(normal, operator.adjoint(v, parameters), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours, by_iteration, rtol=1e-8, atol=1e-8)

    for ours, usual in zip(operator.misfit(x, v, parameters), Operator.misfit(operator, x, v, parameters), strict=True):
        torch.testing.assert_close(ours, usual, rtol=1e-10, atol=1e-10)

    projected = operator.project(v, parameters)
    torch.testing.assert_close(operator.adjoint(projected, parameters), operator.adjoint(v, parameters))
    assert torch.equal(operator.project(projected, parameters), projected)
    assert torch.equal(operator.project(y, parameters), y)
    gain = operator.gain(parameters)
    assert gain is None or operator.apply(x.sign(), parameters).abs().max() <= gain + 1e-10

    for row in range(3):
        alone = operator.observe(x[row : row + 1], ids=ids[row : row + 1])
        torch.testing.assert_close(alone[0], y[row], rtol=1e-12, atol=1e-12)
    assert operator.observe(x.float(), ids=ids).dtype == torch.float32


class _SendsNothing(TorchFunctionMode):
    """Refuses to make a tensor of the program's own numbers, of which no operator tells what sends them."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        own = func in (torch.tensor, torch.as_tensor, torch.from_numpy) and not isinstance(args[0], Tensor)
        assert not own, f"{func.__name__} of {args[0]}"
        return func(*args, **(kwargs or {}))


class OnDevice(TorchDispatchMode):
    """Refuses in its block every tensor that is not on the device: "meta", where no tensor has a value to ask for.

    That is what the graph of a GPU cannot hold, and what a GPU waits for.
    """

    def __enter__(self):
        self.sends = _SendsNothing()
        self.sends.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.sends.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        assert all(tensor.is_meta for tensor in tensors), f"{func} of a tensor that is not on the device"
        return result


class Bare(Denoiser):
    """A denoiser without autocast, which knows no meta tensors."""

    def raw(self, x, time, condition=None):
        """The network."""
        return self.network(x, time.to(x))


class Gaussian:
    """A Gaussian prior over 1 x 2 x 3 images: its denoiser, and its posterior under any linear operator, exactly."""

    shape = (1, 2, 3)

    def __init__(self, schedule, device="cpu"):
        generator = torch.Generator().manual_seed(0)
        root = 0.5 * torch.randn(6, 6, dtype=torch.float64, generator=generator)
        self.covariance = (root @ root.T + 0.1 * torch.eye(6, dtype=torch.float64)).to(device)
        self.mean = torch.randn(6, dtype=torch.float64, generator=generator).to(device)
        self.spectrum = torch.linalg.eigh(self.covariance)
        self.denoiser = Denoiser(_GaussianNetwork(self, schedule), schedule, "x0")

    def posterior(self, y, operator, sigma):
        """Returns mean and covariance of p(x | y) for one observation (1, ...) of id 0."""
        parameters = operator.parameters(torch.tensor([0]), tuple(y.shape[1:]))
        basis = torch.eye(6, dtype=torch.float64).reshape(6, *self.shape)
        columns = [operator.apply(e[None], parameters).flatten() for e in basis]
        matrix = torch.stack(columns, 1)
        noise = sigma**2 * torch.eye(len(matrix), dtype=torch.float64)
        gain = self.covariance @ matrix.T @ torch.linalg.pinv(matrix @ self.covariance @ matrix.T + noise)
        return self.mean + gain @ (y.flatten() - matrix @ self.mean), self.covariance - gain @ matrix @ self.covariance


class _GaussianNetwork(torch.nn.Module):
    def __init__(self, prior, schedule):
        super().__init__()
        self.prior, self.schedule = prior, schedule

    def forward(self, x, time):
        t = time[:1].double()
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        values, vectors = self.prior.spectrum
        gain = alpha * vectors * (values / (alpha**2 * values + sigma**2)) @ vectors.T
        return (self.prior.mean + (x.flatten(1) - alpha * self.prior.mean) @ gain.T).reshape(x.shape)


def check_moments(samples, mean, covariance, bias=0.0):
    """Mean and covariance of samples are the given ones, within 5 Monte-Carlo errors and a relative bias.

    `bias` is the documented discretisation error: a fraction of the standard deviations for the mean, and of the
    variances for the covariance.
    """
    x = samples.flatten(1).double()
    std = covariance.diagonal().sqrt()
    error = std / len(x) ** 0.5
    assert ((x.mean(0) - mean).abs() <= 5 * error + bias * std).all()
    spread = torch.outer(std, std)
    found = torch.cov(x.T)
    assert ((found - covariance).abs() <= (5 * (2 / len(x)) ** 0.5 + bias) * spread).all()


def check_sampler(sampler, operator, sigma, device, denoiser=None):
    """The same ids and seed give the same samples whatever the batch split and order; another seed gives others."""
    denoiser = denoiser or Gaussian(VPSchedule.linear(), device).denoiser
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, *Gaussian.shape, dtype=torch.float64, generator=generator).to(device)
    ids = torch.tensor([9, 4, 2**33, 0, 7], device=device)
    y = operator.observe(x, sigma, ids=ids)

    def run(rows, seed=3):
        return sampler(denoiser, y[rows], operator, sigma=sigma, ids=ids[rows], seed=seed)

    rows = torch.arange(5, device=device)
    calls = []
    whole = sampler(
        denoiser,
        y,
        operator,
        sigma=sigma,
        ids=ids,
        seed=3,
        callback=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(k + 1, len(calls)) for k in range(len(calls))]
    assert torch.equal(whole, run(rows))
    torch.testing.assert_close(torch.cat((run(rows[:2]), run(rows[2:]))), whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(run(rows.flip(0)).flip(0), whole, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(run(rows, seed=4), whole)
    assert not whole.requires_grad


def check_adapter(model, inputs, device, dtypes=(torch.float32, torch.bfloat16), convert=torch.nn.Module.to):
    """accelerate() keeps class and state_dict; output and gradients by the accuracy rule; restore() undoes it.

    The comparison in a dtype is the same model, its parameters in that dtype, in native torch, in the memory layout in
    which it is less exact: which one that is depends on the machine. A class that is swapped at the top is derived from
    its own and has its name. `convert` puts a model into a dtype.
    """
    model, inputs = model.to(device), tuple(tree_map_only(Tensor, lambda x: x.to(device), inputs))
    names = [(key, value.data_ptr(), value.dtype) for key, value in model.state_dict().items()]
    kind, modules = type(model), [type(module) for module in model.modules()]
    before = gradients_of(model, inputs)
    exact = gradients_of(convert(copy.deepcopy(model), torch.float64), inputs)
    for dtype in dtypes:
        native = convert(copy.deepcopy(model), dtype)
        usual = [gradients_of(native.to(memory_format=layout), inputs) for layout in MEMORY_FORMATS]
        assert accelerate(model, dtype=None if dtype == torch.float32 else dtype) is model
        assert original(model) is kind
        assert isinstance(model, kind)
        assert type(model).__qualname__ == kind.__qualname__
        assert [(key, value.data_ptr(), value.dtype) for key, value in model.state_dict().items()] == names
        ours, again = gradients_of(model, inputs), gradients_of(model, inputs)
        for index, (r, k, *natives) in enumerate(zip(exact, ours, *usual, strict=True)):
            for norm in (max_norm, rms_norm):
                error = max(norm(n - r) for n in natives)
                allowed = (3 if index else 2) * error + torch.finfo(dtype).eps * norm(r)
                assert norm(k - r) <= allowed, f"{dtype} {index}: {norm.__name__} {norm(k - r):.2e} > {allowed:.2e}"
            assert torch.equal(k, again[index]), "not repeatable"
    assert restore(model) is model
    assert [type(module) for module in model.modules()] == modules
    assert all(torch.equal(a, b) for a, b in zip(before, gradients_of(model, inputs), strict=True))


def gradients_of(model, inputs):
    """Returns output, gradient to the first input, and all gradients to parameters, scaled by their sizes, as one."""
    parameters = dict(model.named_parameters())
    dtype = next(iter(parameters.values())).dtype
    x = inputs[0].to(dtype).requires_grad_()
    y = model(x, *inputs[1:])
    y = getattr(y, "sample", y)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y)
    dx, *dw = torch.autograd.grad(y, [x, *parameters.values()], cotangent)
    assert [g.dtype for g in dw] == [p.dtype for p in parameters.values()]
    return [y.detach(), dx, torch.cat([g.flatten().double() / g.numel() ** 0.5 for g in dw])]


def check_distributed(model, inputs, path):
    """Under DistributedDataParallel, of one process here, backward() leaves the gradients that it leaves without."""
    parallel, distributed = torch.nn.parallel, torch.distributed
    model(*inputs).square().sum().backward()
    usual = [p.grad for p in model.parameters()]
    distributed.init_process_group("gloo", init_method=f"file://{path}", rank=0, world_size=1)
    try:
        model.zero_grad()
        parallel.DistributedDataParallel(model)(*inputs).square().sum().backward()
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), usual, strict=True))
    finally:
        distributed.destroy_process_group()
