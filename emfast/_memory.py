"""Memory of freed tensors kept by the process, on Linux with glibc: mapped afresh it costs a page fault per 4 KB."""

import ctypes
import ctypes.util
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
DEFAULT_TRIM_THRESHOLD, DEFAULT_MMAP_MAX = 64 << 20, 65536


def keep_freed_memory(keep: bool = True) -> bool:
    """Makes malloc reuse the memory of large freed blocks instead of giving it back; returns whether it could.

    glibc maps every block above 32 MB afresh and returns it when freed, so that the activations of a large batch are
    zeroed by the system at every step. The price: the process keeps its peak memory until it ends.

    Arguments:
        keep: False goes back to what glibc settles to.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        return False
    trim = -1 if keep else DEFAULT_TRIM_THRESHOLD
    done: bool = libc.mallopt(M_TRIM_THRESHOLD, trim) and libc.mallopt(M_MMAP_MAX, 0 if keep else DEFAULT_MMAP_MAX)
    if not keep:
        libc.malloc_trim(ctypes.c_size_t(0))
    return bool(done)
