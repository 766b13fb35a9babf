"""What an operator call must move, compute and launch, for every call that some code makes on fake tensors."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from compiled import Compiled, launches
from measure import HEAD_START
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from emfast.compilation.compiling import Call, layouts
from emfast.dispatch import way
from emfast.kernels._group_norm_tiles import BACKWARD, FORWARD, configure

BANDWIDTH, RATE = 3.0e12, 790e12  # bytes/s of a copy, bf16 FLOP/s of a matrix product: an H100's, rounded
EXPONENTIALS = 16 * 132 * 1.755e9  # per second: 16 per clock and multiprocessor, by NVIDIA's tables
KINDS = {  # parts of an operator's name; the first that fits counts
    "attention": ("attention",),
    "norm": ("group_norm",),
    "convolution": ("convolution",),
    "linear": ("mm", "linear"),
    "sampler": ("sampler_update", "misfit", "emfast::normal"),
}
FUSIBLE = ("elementwise", "norm", "sampler")  # what a compiler writes itself, rather than calling a library
FREE = ("_unsafe_view", "empty", "new_empty", "empty_like", "empty_strided", "detach", "lift_fresh", "prim::device")


@dataclass
class Node:
    """One call of an operator that launches something: what it reads and writes, as (memory, bytes)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    reads: list[tuple[int, int]]
    writes: list[tuple[int, int]]
    flops: float = 0.0
    exponentials: float = 0.0
    launches: int = 1
    again: int = 0  # bytes moved once more
    call: Call | None = None  # of one of our kernels
    measured: float | None = None  # milliseconds, where it ran

    @property
    def bytes(self) -> int:
        """All that is moved."""
        return sum(size for _, size in self.reads + self.writes) + self.again

    @property
    def ms(self) -> float:
        """The time on paper."""
        return max(time_of(self.bytes, self.flops, self.exponentials), self.issue)

    @property
    def issue(self) -> float:
        """The time that issuing the instructions of our kernels takes; 0 for those of others."""
        return sum(kernel.ms for kernel in self.kernels)

    @property
    def kernels(self) -> list[Compiled]:
        """Those of ours that it launches."""
        return _launches(self.call) if self.call else []


@cache
def _launches(call: Call) -> list[Compiled]:
    return launches(*call)


def time_of(moved: float, flops: float, exponentials: float) -> float:
    """Returns the milliseconds that the slowest of the three takes."""
    return 1e3 * max(moved / BANDWIDTH, flops / RATE, exponentials / EXPONENTIALS)


class Walk(TorchDispatchMode):
    """Records a node for every operator call that is more than a view.

    Arguments:
        timed: Measures each call, on a GPU, by itself: what it reads is in the caches as the call before left it.
    """

    def __init__(self, *, timed: bool = False) -> None:
        super().__init__()
        self.timed = timed
        self.nodes: list[Node] = []
        self.alive: list[Any] = []  # so that no memory is given out twice

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, ms = timed_call(op, args, kwargs or {}) if self.timed else (op(*args, **(kwargs or {})), None)
        name = op.name().split(".")[0]
        inputs, outputs = tensors((args, kwargs)), tensors(out)
        self.alive += [] if self.timed else outputs
        view = not op._schema.is_mutable and any(result.alias_info is not None for result in op._schema.returns)
        if view or name.removeprefix("aten::") in FREE or not outputs:
            return out
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "elementwise")
        wanted = [x for x in outputs if x.numel()]
        inputs = [x for x in inputs if not same_write(op, x, args) and not only_sized(name, x, args)]
        node = Node(name, kind, tuple(wanted[0].shape), sizes(inputs), sizes(wanted), measured=ms)
        count(node, op, args, kwargs, out)
        if op.namespace == "emfast" and way(op._opname, "triton"):
            node.call = layouts(op, args)
        self.nodes.append(node)
        if name == "aten::convolution" and args[2] is not None:  # cuDNN's bias is an addition of its own
            ((where, size),) = node.writes
            node.writes = [(-where, size)]
            self.nodes.append(Node("bias", "elementwise", node.shape, [(-where, size)], [(where, size)]))
        return out


def timed_call(op: Any, args: Any, kwargs: Any) -> tuple[Any, float]:
    """Returns what a call returns, and the milliseconds that it takes on the GPU, its launches aside."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(HEAD_START)
    begin.record()
    out = op(*args, **kwargs)
    end.record()
    end.synchronize()
    return out, begin.elapsed_time(end)


def same_write(op: Any, x: Tensor, args: Any) -> bool:
    """Whether a tensor is only written: the target of a copy."""
    return "copy_" in op.name() and x is args[0]


def only_sized(name: str, x: Tensor, args: Any) -> bool:
    """Whether a tensor's values are not read: a convolution's input, for the gradient to it alone."""
    return name == "aten::convolution_backward" and x is args[1] and not args[-1][1]


def tensors(tree: Any) -> list[Tensor]:
    """Returns the tensors among nested arguments."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def memory(x: Tensor) -> int:
    """Returns what tells a tensor's memory from any other."""
    return int(x.untyped_storage()._cdata)


def sizes(values: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Returns the memory and the bytes of each tensor, what is repeated by expansion once."""
    return [(memory(x), min(x.numel() * x.itemsize, x.untyped_storage().nbytes())) for x in values]


def count(node: Node, op: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Adds FLOPs, exponentials and the launches that are not one to a node."""
    formula, backward = flop_registry.get(op.overloadpacket), "backward" in node.name
    if node.kind == "attention":
        packed = "packed" in node.name
        query, key = (args[backward].shape[1:] if packed else args[backward + i].shape for i in range(2))
        scores = query[0] * query[1] * query[2] * key[2]
        node.flops, node.exponentials = (10 if backward else 4) * scores * query[3], scores
        if backward:  # the log-sum-exp, and delta where there are two kernels
            node.launches = 1 if node.name.startswith("emfast") and key[2] <= 256 and query[3] <= 32 else 2
    elif formula is not None:
        node.flops = formula(*args, **(kwargs or {}), out_val=out)
    if node.name.startswith("emfast::group_norm"):
        group_norm(node, args, backward)
    elif node.kind == "norm":
        node.launches, node.again = 2, sum(size for _, size in node.reads)  # first the sums, then the result
    if "misfit" in node.name:
        node.launches = 2  # partial sums are summed


def group_norm(node: Node, args: Any, backward: bool) -> None:
    """A normalisation of ours reads its inputs twice where an image is split; its sums are added up afterwards."""
    x, skip = args[1:3] if backward else args[:2]
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    pixels = x.shape[2] * x.shape[3]
    groups = args[7] if backward else args[5]
    whole = not (backward and args[9])
    form, _ = configure(
        BACKWARD if backward else FORWARD, x, skip is not None, channels, channels // groups, pixels, whole
    )
    if form.block_s > 1:
        node.launches = 2
        node.again = (2 if backward else 1) * x.shape[0] * channels * pixels * x.itemsize
    node.launches += backward and args[9]


def fused(nodes: list[Node]) -> list[Node]:
    """Returns the nodes with what a compiler can write itself merged: no intermediate result leaves a kernel.

    Two calls merge if one reads what the other writes, and no library call lies between them. A normalisation stays a
    reduction and reads its input a second time.
    """
    stage: dict[int, int] = {}  # of what is in a memory: library calls on the longest way to it
    owner: dict[int, int] = {}  # the group that wrote it
    groups: list[list[Node]] = []
    for node in nodes:
        fusible = node.kind in FUSIBLE
        level = max((stage.get(where, 0) for where, _ in node.reads), default=0) + (not fusible)
        before = {owner[w] for w, _ in node.reads if w in owner and stage[w] == level and fusible}
        before = {group for group in before if groups[group] and groups[group][0].kind in FUSIBLE}
        target = min(before, default=len(groups))
        if target == len(groups):
            groups.append([])
        for other in before - {target}:
            groups[target] += groups[other]
            groups[other] = []
            owner |= {where: target for where, group in owner.items() if group == other}
        groups[target].append(node)
        for where, _ in node.writes:
            stage[where], owner[where] = level, target
    return [merged(group, nodes) for group in groups if group]


def merged(group: list[Node], nodes: list[Node]) -> Node:
    """Returns a group as one node: it reads what others wrote, and writes what others read."""
    inside = {id(node) for node in group}
    made = dict(pair for node in group for pair in node.writes)
    wanted = {where for node in nodes if id(node) not in inside for where, _ in node.reads} | {nodes[-1].writes[0][0]}
    read = dict(pair for node in group for pair in node.reads if pair[0] not in made)
    norms = [node for node in group if node.kind == "norm"]
    result = Node("+".join(node.name for node in group), (norms or group)[0].kind, group[0].shape, [], [])
    result.reads, result.writes = list(read.items()), [pair for pair in made.items() if pair[0] in wanted]
    result.flops, result.exponentials = sum(n.flops for n in group), sum(n.exponentials for n in group)
    result.launches = group[0].launches if len(group) == 1 else 1 + len(norms)
    result.again = sum(node.again for node in norms)
    return result
