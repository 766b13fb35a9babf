"""What the assembler makes of a Triton kernel: registers, programs on a multiprocessor, instructions to issue.

A multiprocessor issues four instructions in a clock, each of a warp. A kernel that takes longer for that than for its
bytes cannot move them as fast as a copy does; nor can one whose programs have a multiprocessor to themselves, unless
they load ahead: it waits for memory, or memory for it.
"""

import math
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emfast.compilation.compiling import Layout, compiling, launch

REGISTERS, THREADS, SHARED = 65536, 2048, 228 * 1024  # of a multiprocessor of sm_90
ISSUE = 4 * 132 * 1.755e9  # instructions of an H100 per second
LOOPS = {  # over tokens, in steps of
    "attention_kernel": "BLOCK_N",
    "attention_query_kernel": "BLOCK_N",
    "attention_key_kernel": "BLOCK_M",
}


@dataclass(frozen=True)
class Compiled:
    """One launch of a kernel."""

    name: str
    grid: int  # programs
    warps: int  # of a program
    registers: int  # of a thread
    stack: int  # bytes
    shared: int  # bytes
    once: int  # instructions outside of the longest loop
    loop: int  # in that
    trips: int  # through that

    @classmethod
    def of(cls, kernel: Any, grid: tuple[int, ...], shape: tuple[int, ...] = (1, 1)) -> "Compiled":
        """Reads a launch of a kernel that Triton has compiled for an NVIDIA GPU.

        Arguments:
            kernel: What the launch returned.
            grid: Its programs.
            shape: That of the first tensor of the op call: loops are over tokens, or over tiles of images and channels.
        """
        resources, code = _dump(kernel, "--dump-resource-usage"), _dump(kernel, "-sass")
        registers, stack = (int(re.findall(rf"{name}:(\d+)", resources)[0]) for name in ("REG", "STACK"))
        lines = [(int(at, 16), text) for at, text in re.findall(r"\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);", code)]
        lines = [(at, text) for at, text in lines if "NOP" not in text]
        jumps = [(int(to, 16), at) for at, text in lines for to in re.findall(r"BRA.*?0x([0-9a-f]+)", text)]
        loop = max((sum(to <= at <= end for at, _ in lines) for to, end in jumps if to < end), default=0)
        meta, programs, trips = kernel.metadata, math.prod(grid), 1
        names = kernel.src.fn.arg_names
        constants = {names[path[0]]: value for path, value in kernel.src.constants.items() if len(path) == 1}
        if loop and meta.name == "group_norm_backward_kernel":
            trips = -(-shape[0] * -(-shape[1] // constants["FORM"].band) // programs)
        elif loop and meta.name in LOOPS:
            trips = -(-shape[-2] // constants[LOOPS[meta.name]])
        sizes = (meta.num_warps, registers, stack, meta.shared)
        return cls(meta.name, programs, *sizes, len(lines) - loop, loop, trips)

    @property
    def resident(self) -> int:
        """How many programs share a multiprocessor."""
        registers = -(-self.registers // 8) * 8 * 32 * self.warps
        return min(REGISTERS // registers, THREADS // (32 * self.warps), SHARED // (self.shared + 1024))

    @property
    def instructions(self) -> int:
        """Those of all warps."""
        return self.grid * self.warps * (self.once + self.loop * self.trips)

    @property
    def ms(self) -> float:
        """The time that issuing them takes."""
        return self.instructions / ISSUE * 1e3


def launches(op: str, arguments: Sequence[Any]) -> list[Compiled]:
    """Returns the kernels that an op call launches, compiled for sm_90.

    Arguments:
        op: Its name.
        arguments: As `emfast.compilation.precompile.trace` finds them.
    """
    with compiling(90) as done:
        launch(op, arguments)
    shape = next(x.shape for x in arguments if isinstance(x, Layout))  # of a normalisation, that of grad
    return [Compiled.of(kernel, grid, shape) for kernel, grid in zip(done.kernels, done.grids, strict=True)]


def _dump(kernel: Any, option: str) -> str:
    import triton

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout
