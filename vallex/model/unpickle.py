"""Reads the tensors of a `torch.save` file without ever running what is in it.

Released checkpoints hold the trainer's pickled objects beside the model, so `weights_only` refuses them and a
plain load would run their code. Here every class that is not a tensor or a container becomes an inert
placeholder, and tensors are views of the mapped file, checked against its size before any memory is taken.
"""

import io
import math
import mmap
import pickle
import struct
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from vallex.errors import CheckpointError

MAX_PICKLE_BYTES = 16 * 2**20

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
    """Stands for a class or function that is not trusted, and for whatever it would have made.

    Keeps mapping entries, so that settings can be read, and drops the rest.
    """

    def __init__(self, origin: str):
        super().__init__()
        self.origin = origin

    def __call__(self, *_args) -> "Inert":
        return Inert(self.origin)

    def append(self, _item) -> None:
        """Takes what a pickled subclass of list would hold, and drops it."""

    extend = append


class _OrderedDict(dict):
    """A state dict, without the `_metadata` that torch pickles as its state."""

    def __init__(self, *_args):
        super().__init__()


class _Reader(pickle._Unpickler):
    """The pure-Python unpickler, without the opcodes by which a small file can take much time or memory.

    Its memo is a dict, where the C one allocates what a file asks for. Nothing is hashed but strings, because
    hashing a tuple walks all that it nests; nothing is called or given state but what `find_class` made.
    """

    def __init__(self, data: bytes, storages: "_Storages"):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._storages = storages

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return _OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        return Inert(f"{module}.{name}"[:100])

    def persistent_load(self, key):
        kind, dtype, name, _device, num_elements = key
        if not (isinstance(name, str) and isinstance(num_elements, int)):
            raise pickle.UnpicklingError("a reference without a name or a size")
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            return Inert("torch.storage")
        return self._storages.load(dtype, name, num_elements)

    def load_reduce(self):
        args = self.stack.pop()
        if not callable(self.stack[-1]) or type(args) is not tuple:
            raise pickle.UnpicklingError("a call that no checkpoint makes")
        self.stack[-1] = self.stack[-1](*args)

    def load_newobj_ex(self):
        self.stack.pop()
        self.load_reduce()

    def load_build(self):
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Inert) and isinstance(state, dict):
            target.update(state)
        elif not isinstance(target, Inert | _OrderedDict):
            raise pickle.UnpicklingError("a state for what has none")

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def load_setitems(self):
        self._put(self.pop_mark())

    def load_dict(self):
        items = self.pop_mark()
        self.append({})
        self._put(items)

    def _put(self, items: list) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise pickle.UnpicklingError("entries for what is not a mapping")
        target.update(
            (key, value) for key, value in zip(items[::2], items[1::2], strict=True) if isinstance(key, str)
        )

    def load_empty_set(self):
        self.append(Inert("set"))

    def load_frozenset(self):
        self.pop_mark()
        self.append(Inert("frozenset"))

    def load_additems(self):
        self.pop_mark()

    def refuse(self):
        raise pickle.UnpicklingError("an instruction that torch.save does not write")

    dispatch = pickle._Unpickler.dispatch | {
        opcode[0]: handler
        for opcode, handler in (
            (pickle.REDUCE, load_reduce),
            (pickle.NEWOBJ, load_reduce),
            (pickle.NEWOBJ_EX, load_newobj_ex),
            (pickle.BUILD, load_build),
            (pickle.SETITEM, load_setitem),
            (pickle.SETITEMS, load_setitems),
            (pickle.DICT, load_dict),
            (pickle.EMPTY_SET, load_empty_set),
            (pickle.FROZENSET, load_frozenset),
            (pickle.ADDITEMS, load_additems),
            (pickle.INST, refuse),
            (pickle.OBJ, refuse),
            (pickle.EXT1, refuse),
            (pickle.EXT2, refuse),
            (pickle.EXT4, refuse),
            (pickle.BYTEARRAY8, refuse),
            (pickle.NEXT_BUFFER, refuse),
            (pickle.READONLY_BUFFER, refuse),
        )
    }


def _rebuild_tensor(storage: Tensor | Inert, offset, size, stride, *_unused) -> Tensor | Inert:
    if isinstance(storage, Inert):
        return storage
    if {type(size), type(stride)} != {tuple} or any(type(n) is not int for n in size + stride):
        raise pickle.UnpicklingError("a tensor without a shape")
    if math.prod(size) > storage.numel():
        # an expanded view: a few bytes could claim any width, and copying it would take that memory
        raise pickle.UnpicklingError(f"a tensor of {list(size)} in a storage of {storage.numel()}")
    return storage.as_strided(size, stride, offset)


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

    Of mappings only the entries with a string as key are kept.
    Errors: CheckpointError where the file is not whole or not of this format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(f"{path}: a zip file, but not one that torch.save wrote")
            prefix = pickles[0].removesuffix("/data.pkl")
            byteorder = f"{prefix}/byteorder"
            if byteorder in archive.namelist() and _read_entry(path, archive, byteorder) != b"little":
                raise CheckpointError(f"{path}: written on a big-endian machine; write it again on another")
            data = _read_entry(path, archive, pickles[0])
            return _Reader(data, _Storages(path, archive, prefix)).load()
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path}: not a whole torch.save file ({path.stat().st_size:,} bytes): half downloaded, or of "
            "another kind. Fetch it again: vallex download --only checkpoint"
        ) from error
    except CheckpointError:
        raise
    except Exception as error:
        # whatever a damaged or hostile pickle can provoke is one thing to the user: a bad file
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path}: damaged, or not a model checkpoint: {detail}") from error


def _read_entry(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        # torch.save compresses nothing, and a compressed entry can unfold to any size
        raise CheckpointError(f"{path}: a zip file, but not one that torch.save wrote: {name} is compressed")
    if entry.file_size > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{path}: its index is over {MAX_PICKLE_BYTES >> 20} MB; a model's is far smaller"
        )
    return archive.read(entry)
