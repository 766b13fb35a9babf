"""Images in and out: readers, observations in files, the embedded sample, and the store of reconstructions."""

from emfast.data.images import Images, load
from emfast.data.observations import load_observations, save_observations
from emfast.data.store import Store

__all__ = ["Images", "Store", "load", "load_observations", "save_observations"]
