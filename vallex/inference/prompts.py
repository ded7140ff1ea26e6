"""Voice prompts: what the model needs to speak in a voice, read from and written to `.npz` files.

The format is the released one (prompts/README.md). Files come from strangers, so nothing is unpickled, and
the size that an array's header claims is checked before memory is taken: np.load does the second only half.
"""

import difflib
import io
import math
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from vallex.errors import PromptError
from vallex.files import atomic_write
from vallex.languages import RELEASED_LANGUAGES, Language, is_language_code

NUM_CODEBOOKS = 8
NUM_CODES = 1024
NUM_TEXT_IDS = 2048
FRAME_RATE_HZ = 75
MAX_PROMPT_SEC = 60
MAX_TEXT_TOKENS = 2048
MAX_NAME_BYTES = 120

# The largest array is MAX_PROMPT_SEC of int64 codes, 288 kB; four of those stay far below this.
_MAX_ARRAY_BYTES = 1 << 20
_MAX_FILE_BYTES = 4 << 20
_MAX_HEADER_BYTES = 256
_ARRAYS = ("audio_tokens", "text_tokens")  # of the released format, and one of the next two
_LANGUAGES = ("lang_code", "language")  # a number of the released three; the code of an added language
_RECORDS = ("toy", "transcript")  # what vallex adds


@dataclass(frozen=True, kw_only=True, eq=False)
class VoicePrompt:
    """A stretch of a voice and what it says. Raises PromptError, naming every fault, where it is not one.

    codes: [P, 8] int64, EnCodec codes 0..1023 at 75 frames a second
    text: [S] int64, phoneme ids of what is said, 0..2047
    language: code of the language that is spoken
    toy: made with toy weights, so that the codes are noise to the released model
    transcript: what is said, in letters; "" where it is not known, as in the released prompts
    """

    codes: Tensor
    text: Tensor
    language: str
    toy: bool = False
    transcript: str = ""

    def __post_init__(self):
        faults = _code_faults(self.codes[None]) + _text_faults(self.text[None])
        faults += _language_faults("language", self.language)
        if faults:
            raise PromptError("; ".join(faults))

    @property
    def seconds(self) -> float:
        """How long the voice is heard."""
        return len(self.codes) / FRAME_RATE_HZ


def load_prompt(path: Path | str) -> VoicePrompt:
    """The voice prompt in an `.npz` file; PromptError, naming the file and all its faults, if not."""
    path = Path(path)
    arrays = _read_arrays(path)
    faults = _array_faults(arrays)
    if faults:
        raise _unusable(path, "; ".join(faults))
    return VoicePrompt(
        codes=torch.from_numpy(arrays["audio_tokens"][0].astype(np.int64)),
        text=torch.from_numpy(arrays["text_tokens"][0].astype(np.int64)),
        language=arrays["language"].item()
        if "language" in arrays
        else Language.from_prompt_code(arrays["lang_code"].item()),
        toy=bool(arrays["toy"].item()) if "toy" in arrays else False,
        transcript=arrays["transcript"].item() if "transcript" in arrays else "",
    )


def save_prompt(path: Path | str, prompt: VoicePrompt) -> None:
    """Writes a prompt; the original code reads it too, unless it is in a language that it does not know."""
    if prompt.language in RELEASED_LANGUAGES:
        language = {"lang_code": np.int32(Language(prompt.language).prompt_code)}
    else:
        language = {"language": np.str_(prompt.language)}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            audio_tokens=prompt.codes[None].long().cpu().numpy(),
            text_tokens=prompt.text[None].long().cpu().numpy(),
            toy=np.bool_(prompt.toy),
            transcript=np.str_(prompt.transcript),
            **language,
        )


def list_prompts(prompts_dir: Path | str = Path("prompts")) -> list[Path]:
    """The prompt files of a folder by name, unread; none where there is no such folder."""
    return sorted(Path(prompts_dir).glob("[!.]*.npz"))


def find_prompt(name: str, prompts_dir: Path | str = Path("prompts")) -> Path:
    """The prompt file of a voice: `name` is its name in `prompts_dir` or the path of an `.npz` file.

    Raises PromptError, offering the nearest names, where there is none.
    """
    as_path, by_name = Path(name), Path(prompts_dir) / f"{name}.npz"
    if as_path.suffix == ".npz" and as_path.is_file():
        return as_path
    if by_name.is_file():
        return by_name
    known = [path.stem for path in list_prompts(prompts_dir)]
    nearest = difflib.get_close_matches(name.removesuffix(".npz"), known, n=3, cutoff=0.5)
    there_is = f"nearest: {', '.join(nearest)}" if nearest else f"it has {len(known)} other voices"
    raise PromptError(
        f"voice {name!r}: no such file, and no such name in {prompts_dir}/ ({there_is}). "
        "See vallex voice list, or make it: vallex voice make NAME WAV"
    )


def prompt_path(name: str, prompts_dir: Path | str = Path("prompts")) -> Path:
    """Where the voice `name` is kept; PromptError where `name` is too long, elsewhere, or hidden."""
    if not name or name.startswith(".") or not all(c.isalnum() or c in "._- " for c in name):
        raise PromptError(f"voice name {name!r}: use letters, digits, '_', '-', '.' and spaces, no dot first")
    num_bytes = len(name.encode())
    if num_bytes > MAX_NAME_BYTES:
        raise PromptError(
            f"voice name {name!r}: {num_bytes} bytes; at most {MAX_NAME_BYTES} are taken, shorten it"
        )
    return Path(prompts_dir) / f"{name}.npz"


def _unusable(path: Path, reason: str) -> PromptError:
    return PromptError(f"{path}: {reason}. Make it again: vallex voice make {path.stem} {path.stem}.wav")


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file that a prompt may have, each within the size limit."""
    if not path.is_file():
        raise PromptError(f"{path}: no such file. See vallex voice list")
    num_bytes = path.stat().st_size
    if num_bytes > _MAX_FILE_BYTES:
        raise _unusable(path, f"{num_bytes} bytes; a voice prompt has at most {_MAX_FILE_BYTES}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in _ARRAYS + _LANGUAGES + _RECORDS if f"{name}.npy" in archive.NameToInfo]
            return {name: _read_array(archive, name) for name in names}
    except ValueError as error:
        raise _unusable(path, str(error)) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise _unusable(path, f"not an npz file, or only a part of one ({error})") from error


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array; ValueError where it is too large, or is not what its header says."""
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > _MAX_ARRAY_BYTES:
        raise ValueError(f"{name} takes {info.file_size} bytes; at most {_MAX_ARRAY_BYTES} are allowed")
    # the other methods unpack without a limit, whatever `file_size` says
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is packed by zip method {info.compress_type}; numpy writes 0 or 8")
    with archive.open(info) as packed:
        file = io.BytesIO(packed.read(_MAX_ARRAY_BYTES))
    try:
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[
            npy.read_magic(file)
        ]
        shape, fortran_order, dtype = read_header(file, max_header_size=_MAX_HEADER_BYTES)
    except (KeyError, ValueError, TypeError, SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f"{name} is not a numpy array") from error
    content = file.read()
    if dtype.hasobject:
        raise ValueError(
            f"{name} is of dtype {dtype}, a pickle, which is never read; numbers or text are needed"
        )
    num_values = math.prod(shape)
    matches = min(shape, default=0) >= 0 and num_values * dtype.itemsize == len(content)
    if not matches or num_values > _MAX_ARRAY_BYTES:  # values of no size, as empty texts are, can be many
        raise ValueError(f"{name} is {list(shape)} {dtype} by its header and has {len(content)} bytes")
    if not content:
        return np.zeros(shape, dtype)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran_order else "C")


def _array_faults(arrays: dict[str, np.ndarray]) -> list[str]:
    """What is missing among the arrays of a file, and what is wrong with those that are there."""
    faults = [f"it has no array {name}" for name in _ARRAYS if name not in arrays]
    named = [name for name in _LANGUAGES if name in arrays]
    if len(named) != 1:
        faults.append(
            f"it has {' and '.join(named)}, and needs one of them" if named else "it has no array lang_code"
        )
    for name, array in arrays.items():
        kinds = {"toy": "biu", "transcript": "U", "language": "U"}.get(name, "iu")
        if array.dtype.kind not in kinds:
            needed = "text is" if kinds == "U" else "whole numbers are"
            faults.append(f"{name} is of dtype {array.dtype}; {needed} needed")
        elif name == "audio_tokens":
            faults += _code_faults(array)
        elif name == "text_tokens":
            faults += _text_faults(array)
        elif array.size != 1:
            faults.append(f"{name} is {list(array.shape)}; one value is needed")
        elif name in _LANGUAGES:
            faults += _language_faults(name, array.item())
    return faults


def _code_faults(codes: Tensor | np.ndarray) -> list[str]:
    """codes: [1, P, 8] as in a file; numbers and tensors alike."""
    shape = list(codes.shape)
    if len(shape) != 3 or shape[0] != 1:
        return [f"codes are {shape}; [1, frames, {NUM_CODEBOOKS}] is needed"]
    if shape[2] != NUM_CODEBOOKS:
        return [f"codes are {shape}; this model needs {NUM_CODEBOOKS} codebooks"]
    if not 0 < shape[1] <= MAX_PROMPT_SEC * FRAME_RATE_HZ:
        seconds = shape[1] / FRAME_RATE_HZ
        return [f"codes are {shape}, {seconds:.1f} s; above 0 and up to {MAX_PROMPT_SEC} s are allowed"]
    return _range_faults("codes", codes, NUM_CODES)


def _text_faults(text: Tensor | np.ndarray) -> list[str]:
    """text: [1, S] as in a file."""
    shape = list(text.shape)
    if len(shape) != 2 or shape[0] != 1:
        return [f"text is {shape}; [1, phonemes] is needed"]
    if not 0 < shape[1] <= MAX_TEXT_TOKENS:
        return [f"text is {shape}; 1 to {MAX_TEXT_TOKENS} phonemes are allowed"]
    return _range_faults("text ids", text, NUM_TEXT_IDS)


def _range_faults(what: str, values: Tensor | np.ndarray, end: int) -> list[str]:
    low, high = int(values.min()), int(values.max())
    return [] if low >= 0 and high < end else [f"{what} run from {low} to {high}; 0 to {end - 1} are allowed"]


def _language_faults(name: str, value: int | str) -> list[str]:
    if name == "language":
        known = is_language_code(value)
        return [] if known else [f"language is {value!r}; two small letters are needed, as in 'en'"]
    try:
        Language.from_prompt_code(value)
    except ValueError as error:
        return [str(error)]
    return []
