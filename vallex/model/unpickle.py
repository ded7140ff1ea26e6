"""Reads the tensors of a `torch.save` file without ever running what is in it.

Released checkpoints hold the trainer's pickled objects beside the model, so `weights_only` refuses them and a
plain load would run their code. Here every class that is not a tensor or a container becomes an inert
placeholder, and tensors are views of the mapped file, checked against its size before any memory is taken.
"""

import io
import mmap
import pickle
import struct
import zipfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vallex.errors import CheckpointError

MAX_PICKLE_BYTES = 64 * 2**20

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Inert(dict):
    """Stands for an object whose class is not trusted. Keeps mapping entries, so that settings can be read."""

    def __init__(self, *args, **kwargs):
        super().__init__()

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.update(state)

    def append(self, item) -> None:
        """Takes what a pickled list subclass would hold, and drops it."""

    extend = add = append


class _StorageType:
    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype


class _Reader(pickle._Unpickler):
    """The pure-Python unpickler: its memo is a dict, where the C one allocates what a file asks for."""

    def __init__(self, data: bytes, storages: "_Storages"):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._storages = storages

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            # a state dict also carries `_metadata` as its state, which nothing here needs
            return type("OrderedDict", (dict,), {"__setstate__": lambda mapping, state: None})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return partial(_rebuild_tensor)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return partial(_rebuild_parameter)
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _StorageType(_STORAGE_DTYPES[name])
        if (module, name) == ("torch", "Size"):
            return tuple
        # a class of its own for each name, made anew for each file: nothing pickled can reach shared state
        return type("Inert", (Inert,), {"origin": f"{module}.{name}"})

    def persistent_load(self, key):
        kind, storage_type, name, _device, num_elements = key
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"unknown reference {kind!r}")
        return self._storages.load(storage_type.dtype, str(name), int(num_elements))


def _rebuild_tensor(storage: Tensor, offset, size, stride, *_unused) -> Tensor:
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _rebuild_parameter(data: Tensor, *_unused) -> Tensor:
    return data


class _Storages:
    """The storages of a file, as one-dimensional views of its private mapping."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, prefix: str):
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._archive = archive
        self._prefix = prefix
        self._loaded: dict[str, Tensor] = {}

    def load(self, dtype: torch.dtype, name: str, num_elements: int) -> Tensor:
        if name not in self._loaded:
            entry = self._archive.getinfo(f"{self._prefix}/data/{name}")
            num_bytes = num_elements * dtype.itemsize
            if entry.compress_type != zipfile.ZIP_STORED or not 0 <= num_bytes <= entry.file_size:
                raise pickle.UnpicklingError(
                    f"storage {name} should hold {num_bytes} bytes, the file holds {entry.file_size}"
                )
            start = self._data_start(entry)
            if start + num_bytes > len(self._map):
                raise pickle.UnpicklingError(f"storage {name} reaches beyond the end of the file")
            self._loaded[name] = (
                torch.frombuffer(self._map, dtype=dtype, count=num_elements, offset=start)
                if num_elements
                else torch.empty(0, dtype=dtype)
            )
        storage = self._loaded[name]
        if storage.dtype != dtype:
            raise pickle.UnpicklingError(f"storage {name} is asked for as two types")
        return storage

    def _data_start(self, entry: zipfile.ZipInfo) -> int:
        """Where an entry's bytes begin: after its local header, whose extra field pads them to alignment."""
        header = self._map[entry.header_offset : entry.header_offset + 30]
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise pickle.UnpicklingError(f"no entry where {entry.filename} should be")
        name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
        return entry.header_offset + 30 + name_bytes + extra_bytes


def read_torch_file(path: Path) -> object:
    """What a `torch.save` file holds: containers, numbers, strings, tensors, and Inert for all else.

    Errors: CheckpointError where the file is not whole or not of this format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(f"{path}: a zip file, but not one that torch.save wrote")
            prefix = pickles[0].removesuffix("/data.pkl")
            if archive.getinfo(pickles[0]).file_size > MAX_PICKLE_BYTES:
                raise CheckpointError(
                    f"{path}: its index is over {MAX_PICKLE_BYTES >> 20} MB; a model's is far smaller"
                )
            names = set(archive.namelist())
            if f"{prefix}/byteorder" in names and archive.read(f"{prefix}/byteorder") != b"little":
                raise CheckpointError(f"{path}: written on a big-endian machine; write it again on another")
            return _Reader(archive.read(pickles[0]), _Storages(path, archive, prefix)).load()
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path}: not a whole torch.save file ({path.stat().st_size:,} bytes): half downloaded, or of "
            "another kind. Fetch it again: vallex download --only checkpoint"
        ) from error
    except CheckpointError:
        raise
    except RecursionError as error:
        raise CheckpointError(f"{path}: damaged: nested too deeply to be a checkpoint") from error
    except Exception as error:
        # whatever a damaged or hostile pickle can provoke is one thing to the user: a bad file
        detail = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path}: damaged, or not a model checkpoint: {detail}") from error
