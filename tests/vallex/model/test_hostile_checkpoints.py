"""Files that are damaged or meant to harm: one CheckpointError, nothing executed, no great memory or time."""

import io
import pickle
import resource
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import vallex
from vallex.errors import CheckpointError
from vallex.model import unpickle
from vallex.model.checkpoint import save_model, to_released_name
from vallex.model.unpickle import Inert, read_torch_file

STORAGE_OF_4_FLOATS = b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x04tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
NESTED_TUPLES = b")" + b"2\x86" * 60
"""A tuple of two of a tuple of two of ...: 2 ** 60 leaves in 120 bytes."""


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.fixture
def small(build_model):
    return build_model(d_model=8, num_heads=1, num_layers=1, num_quantizers=3)


def released(model, path, inside=None, **extras) -> Path:
    tensors = {to_released_name(name): tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": tensors | (inside or {}), "nhead": model.config.num_heads} | extras, path)
    return path


def torch_zip(path, data: bytes, compression=zipfile.ZIP_STORED, storage: bytes = bytes(16)) -> Path:
    """A torch.save file of a pickle and one storage."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/byteorder", b"little")
        archive.writestr("a/data/0", storage)
    return path


def beside_model(path, value: bytes) -> Path:
    """Puts a value, given as pickle opcodes, beside the model of a released file."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            if name.endswith("/data.pkl"):
                content = content[:-1] + b"\x8c\x05extra" + value + b"s."
            archive.writestr(name, content)
    return path


def calls(marker: Path) -> dict[str, Call]:
    code = f"open({str(marker)!r}, 'w')"
    return {
        "os.system": Call(__import__("os").system, f"touch {marker}"),
        "subprocess": Call(subprocess.check_call, ["touch", str(marker)]),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "open": Call(open, str(marker), "w"),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "path": Call(Path.touch, marker),
        "torch.load": Call(torch.load, str(marker)),
        "numpy": Call(__import__("numpy").save, str(marker), 1),
    }


@pytest.mark.parametrize("name", calls(Path("x")))
def test_load_model_with_a_call_beside_the_model_loads_and_calls_nothing(small, tmp_path, name):
    marker = tmp_path / "ran"
    path = released(
        small, tmp_path / "m.pt", optimizer=[calls(marker)[name]], sampler={"a": calls(marker)[name]}
    )
    loaded = vallex.load_model(path)
    assert torch.equal(loaded.ar.predict_layer.weight, small.ar.predict_layer.weight)
    assert not marker.exists()


@pytest.mark.parametrize("name", calls(Path("x")))
def test_load_model_with_a_call_inside_the_model_is_refused_and_calls_nothing(small, tmp_path, name):
    marker = tmp_path / "ran"
    path = released(small, tmp_path / "m.pt", inside={"ar_spy.weight": calls(marker)[name]})
    with pytest.raises(
        CheckpointError, match=r"m\.pt: the model holds what is not a tensor: ar_spy\.weight is a "
    ):
        vallex.load_model(path)
    assert not marker.exists()


def test_load_model_names_the_class_of_what_is_not_a_tensor(small, tmp_path):
    path = released(small, tmp_path / "m.pt", inside={"a": Path("x"), "b": 3, "c": [1]})
    with pytest.raises(CheckpointError, match=r"a is a pathlib.*Path; b is a int; c is a list"):
        vallex.load_model(path)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {}},
        {"model": [1, 2]},
        {"model": torch.zeros(3)},
        [1, 2],
        torch.zeros(3),
        {"model": Call(eval, "1")},
        {"model": {}},
        None,
    ],
)
def test_load_model_of_a_torch_file_of_another_kind_says_so(tmp_path, content):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(
        CheckpointError, match=r"m\.pt: .*(without a `model`|not a VALL-E X|not a tensor: all of it)"
    ):
        vallex.load_model(tmp_path / "m.pt")


def test_load_model_with_ordinary_trainer_objects_beside_the_model_loads(small, tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    extras = {
        "optimizer": optimizer.state_dict(),
        "nothing": None,
        "sets": {1, (2, 3)},
        "frozen": frozenset({"a"}),
        "tuple_keys": {(1, 2): 3, 4: 5, Path("p"): 6},
        "shape": torch.Size([2, 3]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "bytes": bytearray(b"abc"),
        "complex": torch.zeros(2, dtype=torch.complex64),
        "unsigned": torch.zeros(2, dtype=torch.uint16),
        "parameter": parameter,
        "empty": torch.zeros(0, 5),
        "scalar": torch.tensor(1.0),
        "half": torch.zeros(3, dtype=torch.bfloat16),
        "sparse": torch.eye(3).to_sparse(),
        "module": torch.nn.Linear(2, 2),
    }
    for protocol in (2, 4):
        tensors = {to_released_name(name): tensor for name, tensor in small.state_dict().items()}
        content = {"model": tensors, "nhead": 1} | extras
        torch.save(content, tmp_path / "m.pt", pickle_protocol=protocol)
        loaded = vallex.load_model(tmp_path / "m.pt")
        assert torch.equal(loaded.ar.predict_layer.weight, small.ar.predict_layer.weight)


def test_read_torch_file_keeps_settings_of_classes_that_are_not_known(tmp_path):
    data = (
        b"\x80\x02}(\x8c\x05modelcicefall.utils\nAttributeDict\n)\x81}\x8c\x05nheadK\x04sb"
        b"\x8c\x04pathcpathlib\nPosixPath\n\x8c\x01x\x85Ru."
    )
    content = read_torch_file(torch_zip(tmp_path / "m.pt", data))
    assert content["model"] == {"nhead": 4}
    assert isinstance(content["path"], Inert)
    assert content["path"].origin == "pathlib.PosixPath"


BOMBS = {
    "tuple as key": b"}" + NESTED_TUPLES + b"K\x01s",
    "tuple as keys": b"}(" + NESTED_TUPLES + b"K\x01u",
    "tuple as key of dict": b"(" + NESTED_TUPLES + b"K\x01d",
    "tuple in a set": b"\x8f(" + NESTED_TUPLES + b"\x90",
    "tuple in a frozen set": b"(" + NESTED_TUPLES + b"\x91",
    "tuple as state": b"cx\ny\n)\x81" + NESTED_TUPLES + b"b",
    "tuple as argument": b"cx\ny\n" + NESTED_TUPLES + b"R",
    "tuple to an ordered dict": b"ccollections\nOrderedDict\n" + NESTED_TUPLES + b"R",
    "deep lists": b"]" * 300_000 + b"a" * 299_999,
    "deep tuples": b")" + b"\x85" * 300_000,
    "deep tuples as key": b"})" + b"\x85" * 300_000 + b"K\x01s",
    "deep calls": b"cx\ny\n" + b")R" * 300_000,
    "deep states": b"cx\ny\n" + b"}\x8c\x01acx\ny\n" * 100_000 + b"sb" * 100_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_load_model_with_what_grows_when_walked_beside_the_model_loads(small, tmp_path, name):
    path = beside_model(released(small, tmp_path / "m.pt"), BOMBS[name])
    assert vallex.load_model(path).config == small.config


REFUSED = {
    "tuple as kind": b"(" + NESTED_TUPLES + b"ctorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x04tQ",
    "tuple as storage name": b"(\x8c\x07storagectorch\nFloatStorage\n"
    + NESTED_TUPLES
    + b"\x8c\x03cpuK\x04tQ"
    + b"0"
    + REBUILD
    + b"\x8c\x01xR",
    "huge storage": b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpu\x8a\x08"
    + b"\xff" * 7
    + b"\x7ftQ",
    "negative storage": b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuJ\xff\xff\xff\xfftQ",
    "absent storage": b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x017\x8c\x03cpuK\x04tQ",
    "storage elsewhere": b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x09../../../x\x8c\x03cpuK\x04tQ",
    "storage of two types": STORAGE_OF_4_FLOATS + STORAGE_OF_4_FLOATS.replace(b"Float", b"Long"),
    "short reference": b"(\x8c\x07storagetQ",
    "number as reference": b"K\x01Q",
    "view beyond the end": REBUILD + b"(" + STORAGE_OF_4_FLOATS + b"K\x02K\x03\x85K\x01\x85tR",
    "view before the start": REBUILD + b"(" + STORAGE_OF_4_FLOATS + b"J\xff\xff\xff\xffK\x01\x85K\x01\x85tR",
    "strides beyond the end": REBUILD + b"(" + STORAGE_OF_4_FLOATS + b"K\x00K\x02\x85K\x09\x85tR",
    "negative stride": REBUILD + b"(" + STORAGE_OF_4_FLOATS + b"K\x03K\x02\x85J\xff\xff\xff\xff\x85tR",
    "expanded view": REBUILD + b"(" + STORAGE_OF_4_FLOATS + b"K\x00J\xff\xff\xff\x7f\x85K\x00\x85tR",
    "overflowing view": REBUILD
    + b"("
    + STORAGE_OF_4_FLOATS
    + b"K\x00"
    + b"\x8a\x08\0\0\0\0\0\0\0\x40" * 2
    + b"\x86K\x01K\x01\x86tR",
    "shape of tuples": REBUILD
    + b"("
    + STORAGE_OF_4_FLOATS
    + b"K\x00K\x01K\x01\x86J\xff\xff\xff\x7f\x86K\x01K\x01\x86tR",
    "shape of text": REBUILD + b"(" + STORAGE_OF_4_FLOATS + b"K\x00\x8c\x01aK\x01tR",
    "tensor as arguments": b"cx\ny\n" + STORAGE_OF_4_FLOATS + b"R",
    "tensor as a class": STORAGE_OF_4_FLOATS + b")\x81",
    "entries for a tensor": STORAGE_OF_4_FLOATS + b"K\x00K\x01s",
    "state for a tensor": STORAGE_OF_4_FLOATS + b"}b",
    "state for a function": REBUILD + b"}\x8c\x05spoilK\x01sb",
    "state for a class": b"ccollections\nOrderedDict\n}\x8c\x05spoilK\x01sb",
    "state for a dtype": b"ctorch\nFloatStorage\n}\x8c\x05spoilK\x01sb",
    "call of a text": b"\x8c\x01x)R",
    "byte array of a petabyte": b"\x96" + struct.pack("<Q", 2**50),
    "byte array of 8 GB": b"\x96" + struct.pack("<Q", 2**33),
    "text of a petabyte": b"\x8d" + struct.pack("<Q", 2**50),
    "memo of a petabyte": b"K\x01r\xff\xff\xff\xffh\x07",
    "extension": b"\x82\x01",
    "instance": b"(ios\nsystem\n",
    "object": b"(cos\nsystem\n\x8c\x01xo",
    "number of a million digits": b"I" + b"9" * 1_000_000 + b"\n",
    "unknown instruction": b"\xfe",
    "nothing on the stack": b"00000",
    "newer protocol": b"\x80\x63",
    "end": b"",
}


@pytest.mark.parametrize("name", REFUSED)
def test_load_model_of_a_hostile_pickle_is_one_line_and_takes_no_memory(tmp_path, name):
    data = b"\x80\x02}\x8c\x05model}\x8c\x01a" + REFUSED[name] + (b"" if name == "end" else b"ss.")
    path = torch_zip(tmp_path / "m.pt", data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"m\.pt: (damaged|the model holds|not a VALL-E X)") as caught:
        vallex.load_model(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not hasattr(unpickle._rebuild_tensor, "spoil")
    assert not hasattr(unpickle._OrderedDict, "spoil")


def test_hostile_pickles_fail_for_what_they_do(tmp_path):
    # the frame around them is sound: a tensor in their place is read
    data = (
        b"\x80\x02}\x8c\x05model}\x8c\x01a"
        + REBUILD
        + b"("
        + STORAGE_OF_4_FLOATS
        + b"K\x01K\x03\x85K\x01\x85tRss."
    )
    path = torch_zip(tmp_path / "m.pt", data, storage=struct.pack("<4f", 1, 2, 3, 4))
    assert read_torch_file(path)["model"]["a"].tolist() == [2, 3, 4]


def test_load_model_of_expanded_tensors_is_refused(small, tmp_path):
    wide = torch.zeros(1).expand(2048, 16384)
    path = released(small, tmp_path / "m.pt", inside={"ar_text_embedding.word_embeddings.weight": wide})
    with pytest.raises(CheckpointError, match=r"a tensor of \[2048, 16384\] in a storage of 1"):
        vallex.load_model(path)


def test_load_model_of_a_compressed_index_is_refused_before_it_unfolds(tmp_path):
    path = torch_zip(tmp_path / "m.pt", b"\x80\x02}." + bytes(2**22), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**16
    with pytest.raises(CheckpointError, match=r"a/byteorder is compressed|a/data\.pkl is compressed"):
        vallex.load_model(path)


def test_load_model_of_a_great_index_is_refused(tmp_path):
    path = torch_zip(tmp_path / "m.pt", b"\x80\x02}." + bytes(unpickle.MAX_PICKLE_BYTES))
    with pytest.raises(CheckpointError, match="its index is over 16 MB"):
        vallex.load_model(path)


def test_load_model_of_a_big_endian_file_says_so(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("a/byteorder", b"big")
    with pytest.raises(CheckpointError, match="written on a big-endian machine"):
        vallex.load_model(tmp_path / "m.pt")


@pytest.mark.parametrize("names", [[], ["a.txt"], ["a/data.pkl", "b/data.pkl"]])
def test_load_model_of_another_zip_says_so(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    message = "a zip file, but not one that torch.save wrote" if names else "neither a torch.save file nor"
    with pytest.raises(CheckpointError, match=message):
        vallex.load_model(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"PK\x03\x04", b"just a text\n" * 50, b"<!DOCTYPE html>", b"\0" * 999]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_load_model_of_a_file_of_another_kind_says_so(tmp_path, content, suffix):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"m\{suffix}: (neither|not a whole)") as caught:
        vallex.load_model(path)
    assert "\n" not in str(caught.value)


def test_load_model_of_a_half_downloaded_file_says_how_much_there_is(shared, tmp_path):
    content = (shared / "reference" / "random_plain.pt").read_bytes()
    path = tmp_path / "half.pt"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        CheckpointError, match=r"half\.pt: not a whole .*\(1,060,956 bytes\).*vallex download"
    ):
        vallex.load_model(path)


def test_load_model_of_the_older_torch_format_says_so(tmp_path):
    torch.save({"model": {}}, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"m\.pt: neither"):
        vallex.load_model(tmp_path / "m.pt")


WRONG_SAFETENSORS = {
    "another program's": (None, "not one that vallex wrote"),
    "another's with metadata": ({"format": "pt"}, "not one that vallex wrote"),
    "config not json": ({"config": "{"}, r"m\.safetensors: the recorded model configuration cannot be read"),
    "config too deep": ({"config": "[" * 50_000}, "configuration cannot be read"),
    "config of a billion layers": (
        {"config": '{"d_model": 8, "num_heads": 1, "num_layers": 1000000000, "languages": ["en"]}'},
        r"m\.safetensors: .*num_layers is 1000000000",
    ),
    "config of another size": (
        {"config": '{"d_model": 8, "num_heads": 1, "num_layers": 1, "languages": ["en"]}'},
        r"m\.safetensors: does not fit its own sizes: \d+ missing: .*; 1 unexpected: a",
    ),
    "provenance not json": (
        {"config": "{}", "provenance": "{"},
        r"m\.safetensors: its provenance cannot be read",
    ),
}


@pytest.mark.parametrize("name", WRONG_SAFETENSORS)
def test_load_model_of_other_safetensors_says_so(tmp_path, name):
    metadata, message = WRONG_SAFETENSORS[name]
    save_file({"a": torch.zeros(3)}, tmp_path / "m.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=message):
        vallex.load_model(tmp_path / "m.safetensors")


def damaged_copies(content: bytes, interesting: list[tuple[int, int]]):
    """Truncations, and bit flips of which most are where the structure is, not the weights."""
    generator = torch.Generator().manual_seed(0)

    def below(limit):
        return int(torch.randint(limit, (), generator=generator))

    yield from (content[: len(content) * i // 40] for i in range(40))
    yield from (content[:-i] for i in range(1, 30))
    for i in range(300):
        start, stop = interesting[i % len(interesting)] if i % 10 else (0, len(content))
        damaged = bytearray(content)
        for _ in range(1 + i % 3):
            damaged[start + below(stop - start)] ^= 1 << below(8)
        yield bytes(damaged)


def load_damaged(copies, path) -> tuple[int, int]:
    loaded = refused = 0
    for content in copies:
        path.write_bytes(content)
        try:
            vallex.load_model(path)
            loaded += 1
        except CheckpointError as error:
            assert path.name in str(error)
            refused += 1
    return loaded, refused


def test_load_model_of_damaged_torch_files_loads_or_raises_checkpoint_error(small, tmp_path):
    path = released(small, tmp_path / "m.pt")
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        index = archive.getinfo("m/data.pkl")
        first = index.header_offset
        directory = archive.start_dir
        headers = [(entry.header_offset, entry.header_offset + 64) for entry in archive.infolist()[:3]]
    interesting = [(first, first + 200 + index.file_size), (directory, len(content)), *headers]
    loaded, refused = load_damaged(damaged_copies(content, interesting), path)
    assert refused > 150
    assert loaded + refused == 369


def test_load_model_of_damaged_safetensors_loads_or_raises_checkpoint_error(small, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(small, path)
    content = path.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    loaded, refused = load_damaged(damaged_copies(content, [(0, 8), (8, header), (8, 600)]), path)
    assert refused > 150
    assert loaded + refused == 369
