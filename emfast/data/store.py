"""The store of reconstructions: safetensors shards of floats under a manifest, written and read piece by piece."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emfast._check import check, message
from emfast._files import read_json, read_tensors, verified, write_json, write_tensors
from emfast._json import to_json
from emfast._safetensors import Place
from emfast.data.file_rows import FileRows, Part
from emfast.data.rows import Mapped, Rows, first_not_finite

VERSION = 1
MANIFEST = "manifest.json"


class Store:
    """A folder of tensors with one row per observation, in shards that are finished one by one.

    Several processes may write to one store, the same shard too: the first one's stays. A shard is there whole or not
    at all, and carries a checksum and the identity of its store.

    Arguments:
        folder: The folder; created, or re-opened if it holds a store of the same identity.
        count: Rows in all.
        shard_size: Rows of each shard but the last.
        identity: JSON values that say what the rows are (seed, round, sampler, fingerprints, ...).
        defaults: What a value of the identity was in a store that was begun before it was noted.
        dtype: What the tensors called images are written as: float32, or bfloat16, which takes half the disk and
            rounds by up to 1/512 of a value. They are read as float32.
    Raises:
        ValueError: If the folder holds another store (the sentence names what differs) or a damaged manifest.
        OSError: If the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        count: int,
        shard_size: int,
        identity: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check(count > 0, "Store", "count", "to be positive", count)
        check(shard_size > 0, "Store", "shard_size", "to be positive", shard_size)
        self.folder = Path(folder)
        self.count = count
        self.shard_size = shard_size
        self.dtype = dtype
        self.identity: dict[str, Any] = json.loads(to_json(dict(identity)))
        self._verified: dict[int, tuple[tuple[int, ...], dict[str, Place]]] = {}
        starts = range(0, count, shard_size)
        self.shards = [(index, start, min(start + shard_size, count)) for index, start in enumerate(starts)]
        if (self.folder / MANIFEST).exists():
            self._compare(_manifest(self.folder), defaults or {})
            return
        if any(self.folder.glob("shard-*.safetensors")):  # their manifest was lost
            self._check_own()
        write_json(self.folder / MANIFEST, self._description())

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Store:
        """Returns the store that a folder holds, as its manifest describes it.

        Raises:
            ValueError: If the folder is not a store or the manifest is damaged.
        """
        folder = Path(folder)
        fix = f"Give the folder that holds {MANIFEST}"
        check((folder / MANIFEST).is_file(), "Store.open", str(folder), "to be a store", "no manifest there", fix)
        manifest = _manifest(folder)
        dtype = torch.bfloat16 if manifest.get("dtype") == "bfloat16" else torch.float32
        sizes = {"count": manifest["count"], "shard_size": manifest["shard_size"]}
        return cls(folder, **sizes, identity=manifest["identity"], dtype=dtype)

    @property
    def missing(self) -> list[tuple[int, int, int]]:
        """The (index, start, stop) of the shards still to be written."""
        return [shard for shard in self.shards if not self.has(shard[0])]

    def path(self, index: int) -> Path:
        """Returns the file of a shard, whether it exists or not."""
        check(0 <= index < len(self.shards), "Store", "index", f"to be in 0 .. {len(self.shards) - 1}", index)
        return self.folder / _name(index)

    def has(self, index: int) -> bool:
        """Returns whether a shard is finished. It is verified, not only looked for; once, as long as it is that file.

        Raises:
            ValueError: If the shard is there but damaged or of another store; the sentence names the file.
        """
        if not self.path(index).exists():
            return False
        self._places(index)
        return True

    def write(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Writes a shard, whole or not at all; one that is there stays.

        Arguments:
            index: The shard.
            tensors: Tensors by name with one row per observation of the shard; float32, or int64 for labels and
                ids.
        Raises:
            TypeError: If a dtype is another: reconstructions are never rounded to 8 bits.
            ValueError: If the number of rows is wrong or a value is not finite (the first such row is named).
            FileNotFoundError: If the folder is not there any more.
            OSError: If the file cannot be written; nothing partial is left.
        """
        path, (_, start, stop) = self.path(index), self.shards[index]
        if not self.folder.is_dir():  # the run has dropped it: a shard alone would be no store
            fix = "Run the command that made it again"
            raise FileNotFoundError(message("Store.write", str(self.folder), "to be a store", "nothing there", fix))
        for name, tensor in tensors.items():
            good = tensor.dtype in (torch.float32, torch.int64)
            check(good, "Store.write", f"{name!r}", "to be float32 or int64", tensor, error=TypeError)
            good = tensor.dim() > 0 and len(tensor) == stop - start
            check(good, "Store.write", f"{name!r}", f"to have {stop - start} rows (shard {index})", tensor)
            if tensor.is_floating_point() and (first := first_not_finite(tensor)) is not None:
                row = start + first
                fix = "The sampler diverged: reduce its scale or its learning rate"
                raise ValueError(message("Store.write", f"{name!r}", "to be finite", f"NaN or inf in row {row}", fix))
        kept = {name: tensor.to(self.dtype) if name == "images" else tensor for name, tensor in tensors.items()}
        write_tensors(path, kept, self._stamp(index), replace=False)

    def read(self, index: int) -> dict[str, Tensor]:
        """Returns the tensors of a finished shard, verified.

        Raises:
            FileNotFoundError: If the shard is not written yet.
            ValueError: If it is damaged or of another store; the sentence names the file.
        """
        self._places(index)
        return {name: _wide(tensor) for name, tensor in read_tensors(self.path(index)).items()}

    def rows(self, name: str = "images", shards: int | None = None) -> Rows:
        """Returns one tensor of the whole store, every shard verified, to be read when it is asked for.

        Arguments:
            name: The tensor.
            shards: Only the first so many shards.
        Raises:
            ValueError: If a shard is missing or damaged, or there is no tensor of that name.
        """
        wanted = self.shards[:shards]
        absent = [index for index, _, _ in wanted if not self.path(index).exists()]
        found = f"{len(absent)} of {len(self.shards)} shards missing (first {absent[0]})" if absent else ""
        fix = "Run the command that writes it again: it goes on where it stopped"
        check(not absent, "Store.load", str(self.folder), "to be complete", found, fix)
        parts, place = [], None
        for index, start, stop in wanted:
            there = self._places(index)
            check(name in there, "Store.load", "name", f"to be one of {sorted(there)}", repr(name))
            kind = (there[name].dtype, there[name].shape[1:])
            place = place or there[name]
            same = kind == (place.dtype, place.shape[1:])
            check(same, "Store.load", f"{name!r} in {self.path(index)}", "to be as in the others", kind, _DELETE)
            parts.append(Part(self.path(index), there[name].start, stop - start))
        check(place is not None, "Store.load", "shards", "to be positive", shards)
        shape, dtype = (place.shape[1:], place.dtype) if place is not None else ((), torch.float32)
        rows = FileRows(parts, shape, dtype)
        return Mapped(rows, _wide) if dtype == torch.bfloat16 else rows

    def load(self, name: str = "images") -> Tensor:
        """Returns one tensor of the whole store, in memory; see `rows`."""
        return self.rows(name)[:]

    def _places(self, index: int) -> dict[str, Place]:
        """Returns where the tensors of a finished shard lie, after it was verified.

        Raises:
            FileNotFoundError: If the shard is not written yet.
            ValueError: If it is damaged or of another store; the sentence names the file.
        """
        path, (_, start, stop) = self.path(index), self.shards[index]
        signature = _signature(path)
        if index in self._verified and self._verified[index][0] == signature:
            return self._verified[index][1]
        places, metadata = verified(path)
        for key, value in self._stamp(index).items():
            found = metadata.get(key, "none")
            check(found == value, "Store.read", str(path), f"to have {key} {value}", found, _DELETE)
        for name, place in places.items():
            good = place.shape[:1] == (stop - start,)
            check(good, "Store.read", f"{name!r} in {path}", f"to have {stop - start} rows", place.shape, _DELETE)
        self._verified[index] = signature, places
        return places

    def _check_own(self) -> None:
        """Raises a ValueError unless all shards that are there are whole, and of this store."""
        try:
            own = all(self.has(index) for index, _, _ in self.shards if self.path(index).exists())
        except ValueError:
            own = False
        found = f"shards of another one, or damaged, without a {MANIFEST}"
        check(own, "Store", str(self.folder), "to be a store or empty", found, _OTHER)

    def _description(self) -> dict[str, Any]:
        shards = [{"file": _name(index), "start": start, "stop": stop} for index, start, stop in self.shards]
        return {
            "version": VERSION,
            "count": self.count,
            "shard_size": self.shard_size,
            "identity": self.identity,
            "dtype": str(self.dtype).removeprefix("torch."),
            "shards": shards,
            "store": self._stamp(0)["store"],
        }

    def _stamp(self, index: int) -> dict[str, str]:
        return {"shard": str(index), "store": _hash(self.count, self.shard_size, self.identity)}

    def _compare(self, manifest: dict[str, Any], defaults: Mapping[str, Any]) -> None:
        """Raises a ValueError unless a manifest is this store's, whose identity becomes the one noted there."""
        given = {**self.identity, "count": self.count, "shard_size": self.shard_size}
        there = {**manifest["identity"], "count": manifest["count"], "shard_size": manifest["shard_size"]}
        there = {**{key: value for key, value in defaults.items() if key in given}, **there}
        for key in [*there, *(key for key in given if key not in there)]:
            if key not in given or key not in there or given[key] != there[key]:
                wanted = repr(there[key]) if key in there else "absent"
                found = repr(given[key]) if key in given else "nothing"
                requirement = f"to be {wanted} as in the store {self.folder}"
                raise ValueError(message("Store", repr(key), requirement, found, _OTHER))
        self.identity = manifest["identity"]


_OTHER = "Give another folder, or delete this one"
_DELETE = "The file is damaged or of another run: delete it and run again"


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _signature(path: Path) -> tuple[int, ...]:
    """Returns what changes with a file; nothing for none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _hash(count: int, shard_size: int, identity: dict[str, Any]) -> str:
    text = json.dumps([count, shard_size, identity], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _name(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    manifest = read_json(path)
    keys = {"version": int, "count": int, "shard_size": int, "identity": dict, "shards": list}
    good = isinstance(manifest, dict) and all(isinstance(manifest.get(key), kind) for key, kind in keys.items())
    check(good, "Store", str(path), f"to hold {', '.join(keys)}", "another content", _OTHER)
    found = manifest["version"]
    check(found == VERSION, "Store", str(path), f"to be of version {VERSION}", found, "Use the emfast that wrote it")
    count, size, shards = manifest["count"], manifest["shard_size"], len(manifest["shards"])
    good = count > 0 and size > 0 and shards == -(-count // size)
    check(good, "Store", str(path), f"to list the shards of {count} rows, {size} in each", f"{shards} shards", _OTHER)
    own = _hash(count, size, manifest["identity"])
    found = manifest.get("store", own)
    check(
        own == found, "Store", str(path), f"to be of store {own}", found, "The file is damaged: delete it and run again"
    )
    return manifest
