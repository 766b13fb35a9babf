"""Train clean diffusion models from corrupted observations by expectation-maximization."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from emfast.adapters import accelerate as accelerate
    from emfast.adapters import restore as restore


def __getattr__(name: str) -> Any:
    """Imports the public functions when they are first used."""
    if name not in ("accelerate", "restore"):
        raise AttributeError(f"module 'emfast' has no attribute {name!r}")
    from emfast import adapters

    return getattr(adapters, name)
