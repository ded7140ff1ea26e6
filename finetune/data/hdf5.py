"""Prepared sets as older VALL-E X trainers have them: `audio_sum.hdf5` and `audio_ann_sum.txt`, codes alone.

`<name>/audio` is [8, T] codes and `<name>/text` the phonemes; a line `name|seconds|language|text|` describes
each. The phonemes are places in SYMBOLS, or, in some forks, ids of the released tokenizer, and nothing in the
file says which: the reading that is nearer to the phonemes of the texts is taken.
"""

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
from lhotse import MonoCut

from finetune.data.assemble import SetWriter
from finetune.data.cuts import FRAME_SHIFT_SEC, codes_manifest, make_cut, make_recording
from finetune.data.libritts import Skipped
from finetune.data.prepared import CODES_FOLDER, FORMAT_VERSION, load_prepared
from finetune.data.sources import IMPORT_PART
from finetune.data.splits import PrepareSettings
from finetune.data.summary import PrepareSummary
from vallex.codec.encodec import NAME as CODEC_NAME
from vallex.errors import ConfigError, DataError, TextError
from vallex.files import atomic_write
from vallex.text import PhonemeTokenizer
from vallex.text.symbols import SPACE_SYMBOL, UNKNOWN_ID, released_vocabulary

HDF5_NAME, LINES_NAME = "audio_sum.hdf5", "audio_ann_sum.txt"
# the order of these is the format: its phonemes are places in it
SYMBOLS = "_,.!?-~…NQabdefghijklmnopstuvwxyzɑæʃʑçɯɪɔɛɹðəɫɥɸʊɾʒθβŋɦ⁼ʰ`^#*=ˈˌ→↓↑ "
_UNKNOWN_SYMBOL = "β"  # none of the released ones: read back, it is [UNK] again
UNVERIFIED_CODEC = hashlib.sha256(b"audio_sum.hdf5 does not say whose codes these are").hexdigest()
_NUM_CODEBOOKS, _NUM_CODES = 8, 1024
_SAMPLE_RATE_HZ = 24000
_COMPARED = 50


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of audio_ann_sum.txt."""

    name: str
    language: str
    text: str


@dataclass(frozen=True, kw_only=True)
class _Codec:
    """Whose codes a file holds: vallex notes it in the files that it writes, others do not."""

    is_toy: bool = False
    name: str = CODEC_NAME
    fingerprint: str = UNVERIFIED_CODEC


_NOTES = {"is_toy": "vallex_is_toy", "name": "vallex_codec_name", "fingerprint": "vallex_codec_fingerprint"}


def find_hdf5(src: Path) -> dict[str, Path]:
    """Part to its HDF5 file: `src` itself, or those in it or in its subfolders; none where there is none."""
    if src.is_file():
        return {IMPORT_PART: src} if src.suffix.lower() in (".hdf5", ".h5") else {}
    if (src / HDF5_NAME).is_file():
        return {IMPORT_PART: src / HDF5_NAME}
    return {path.parent.name: path for path in sorted(src.glob(f"*/{HDF5_NAME}"))}


def import_hdf5(
    src: Path, out: Path, speaker: str | None, settings: PrepareSettings, tokenizer: PhonemeTokenizer
) -> PrepareSummary:
    """Makes a prepared set of the files at `src`. Utterances that cannot be used are told, as `prepare` does.

    speaker: of utterances whose file does not say; it never does unless vallex wrote it

    Raises DataError where the files cannot be read or fewer than two utterances can be used; ConfigError
    where no speaker is known.
    """
    files = find_hdf5(src)
    if not files:
        raise DataError(f"{src}: holds no {HDF5_NAME}; give it, or a folder with it and {LINES_NAME}")
    codecs = {_read_codec(path) for path in files.values()}
    if len(codecs) > 1:
        raise DataError(f"{src}: its parts were made by several codecs; import them one by one")
    taken: set[str] = set()
    with SetWriter(src, out) as writer:
        for part, path in files.items():
            for found in _read_part(path, writer.out / CODES_FOLDER, speaker, settings, tokenizer):
                if isinstance(found, Skipped):
                    writer.skipped.append(found)
                elif (name := found[0].id) in taken:
                    writer.skipped.append(Skipped(path=path, reason="same name", detail=name))
                else:
                    taken.add(name)
                    cut, codes, is_new = found
                    writer.add(cut, part, codes, is_new)
        return writer.finish(settings, codecs.pop(), tokenizer, imported_from=HDF5_NAME)


def export_hdf5(prepared: Path, out: Path) -> dict[str, int]:
    """Writes `out/train` and `out/valid`, each with both files; returns how many utterances each has.

    An utterance in several languages is written as one of its first: the format has one. Raises DataError
    where the set is not whole, or its phonemes are of another tokenizer than the released one.
    """
    tokenizer = PhonemeTokenizer()
    data = load_prepared(prepared, tokenizer_fingerprint=tokenizer.fingerprint)
    counts = {}
    for part, cuts in (("train", data.train), ("valid", data.valid)):
        lines = []
        with atomic_write(out / part / HDF5_NAME) as temporary, h5py.File(temporary, "w") as file:
            codec = _Codec(
                is_toy=data.info.is_toy,
                name=data.info.codec_name,
                fingerprint=data.info.codec_fingerprint,
            )
            file.attrs.update({_NOTES[name]: value for name, value in asdict(codec).items()})
            for cut in cuts:
                supervision = cut.supervisions[0]
                group = file.create_group(cut.id)
                group.create_dataset("audio", data=cut.load_codes().T.astype(np.int64))  # [T, 8] -> [8, T]
                group.create_dataset("text", data=_places_of(supervision.custom["phoneme_ids"]))
                group.attrs["speaker"] = supervision.speaker
                text = " ".join((supervision.text or "").replace("|", " ").split())
                language = supervision.custom["phoneme_languages"][0]
                lines.append(f"{cut.id}|{cut.duration}|{language}|{text}|\n")
        with atomic_write(out / part / LINES_NAME) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
        counts[part] = len(lines)
    return counts


def _read_codec(path: Path) -> _Codec:
    with _open(path) as file:
        noted = {name: file.attrs.get(key) for name, key in _NOTES.items()}
    if any(value is None for value in noted.values()):
        return _Codec()
    return _Codec(
        is_toy=bool(noted["is_toy"]), name=str(noted["name"]), fingerprint=str(noted["fingerprint"])
    )


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as cause:
        raise DataError(f"{path}: cannot be read as HDF5 ({cause}); copy it again") from cause


def _read_lines(path: Path) -> list[_Line]:
    """The utterances of an HDF5 file, as the text file beside it says. Raises DataError."""
    beside = path.with_name(LINES_NAME)
    try:
        content = beside.read_text(encoding="utf-8-sig")
    except OSError as cause:
        raise DataError(f"{beside}: cannot be read ({cause.strerror}); it belongs to {path.name}") from cause
    except UnicodeDecodeError as cause:
        raise DataError(f"{beside}: is not UTF-8; save it as UTF-8") from cause
    lines = []
    for number, line in enumerate(content.splitlines(), start=1):
        cells = line.split("|")
        if not line.strip():
            continue
        if len(cells) < 4:
            raise DataError(
                f"{beside}: line {number} has {len(cells)} fields; a line is name|seconds|language|text|"
            )
        lines.append(_Line(name=cells[0], language=cells[2].strip().lower(), text=cells[3].strip()))
    return lines


def _read_part(
    path: Path,
    folder: Path,
    speaker: str | None,
    settings: PrepareSettings,
    tokenizer: PhonemeTokenizer,
) -> Iterator[tuple[MonoCut, np.ndarray, bool] | Skipped]:
    """The cut of each utterance, its codes, written to `folder`, and whether they are new; or why not."""
    lines = _read_lines(path)
    with _open(path) as file:
        are_places = _holds_places(file, lines, tokenizer)
        for line in lines:
            try:
                codes = _codes_of(file, line)
                ids, languages = _phonemes_of(file, line, are_places, tokenizer)
            except (_Unusable, TextError) as cause:
                yield Skipped(path=path, reason="utterance not usable", detail=f"{line.name}: {cause}")
                continue
            name = speaker or file[line.name].attrs.get("speaker")
            if not name:
                raise ConfigError(f"{path}: does not say who speaks; name the speaker: --speaker NAME")
            seconds = len(codes) * FRAME_SHIFT_SEC
            if not settings.min_clip_sec <= seconds <= settings.max_clip_sec:
                reason = "too short" if seconds < settings.min_clip_sec else "too long"
                yield Skipped(path=path, reason=reason, detail=f"{line.name}: {seconds:.2f} s")
                continue
            file_name, is_new = _write_codes(folder, codes)
            # a name only: its sound is not there
            num_samples = round(seconds * _SAMPLE_RATE_HZ)
            recording = make_recording(
                line.name, f"{line.name}.wav", _SAMPLE_RATE_HZ, num_samples, 1, seconds
            )
            manifest = codes_manifest(folder, file_name, codes.shape)
            yield make_cut(recording, str(name), line.text, (ids, languages), manifest), codes, is_new


class _Unusable(Exception):
    """An utterance without the arrays that it should have."""


def _codes_of(file: h5py.File, line: _Line) -> np.ndarray:
    """The codes of an utterance, [T, 8] uint16."""
    codes = _array(file, line.name, "audio")
    if codes is None:
        raise _Unusable("it has no codes in the HDF5 file")
    if codes.ndim == 3 and len(codes) == 1:
        codes = codes[0]
    if codes.ndim != 2 or _NUM_CODEBOOKS not in codes.shape or not codes.size:
        raise _Unusable(f"its codes are {list(codes.shape)}; they should be [8, T]")
    if not np.issubdtype(codes.dtype, np.integer) or codes.min() < 0 or codes.max() >= _NUM_CODES:
        raise _Unusable(f"its codes run over {codes.min()}..{codes.max()}; allowed is 0..1023")
    codes = codes.T if codes.shape[0] == _NUM_CODEBOOKS else codes  # some forks write [T, 8]
    return np.ascontiguousarray(codes.astype(np.uint16))


def _phonemes_of(
    file: h5py.File, line: _Line, are_places: bool, tokenizer: PhonemeTokenizer
) -> tuple[list[int], list[str]]:
    """The phoneme ids of an utterance and the language of each."""
    stored = _read_phonemes(_array(file, line.name, "text"), are_places)
    encoded = tokenizer.encode(line.text, language=line.language) if line.text or not stored else None
    if not stored or (encoded and encoded.ids == stored):
        return encoded.ids, encoded.languages
    return stored, [line.language] * len(stored)


def _holds_places(file: h5py.File, lines: Sequence[_Line], tokenizer: PhonemeTokenizer) -> bool:
    """Whether a file's phonemes are places in SYMBOLS rather than ids; decided by its first texts."""
    likeness = {True: 0.0, False: 0.0}
    for line in islice((line for line in lines if line.text), _COMPARED):
        try:
            stored = _array(file, line.name, "text")
            expected = tokenizer.encode(line.text, language=line.language).ids
        except (_Unusable, TextError):
            continue
        for are_places in likeness:
            read = _read_phonemes(stored, are_places)
            likeness[are_places] += difflib.SequenceMatcher(None, expected, read, autojunk=False).ratio()
    return likeness[True] >= likeness[False]


def _read_phonemes(stored: np.ndarray | None, are_places: bool) -> list[int]:
    """Phoneme ids; none where nothing is stored, or it cannot be what it is read as."""
    if stored is None or not stored.size or not np.issubdtype(stored.dtype, np.integer):
        return []
    values = stored.reshape(-1).tolist()
    vocabulary = released_vocabulary()
    if not are_places:
        return values if min(values) >= 0 and max(values) < len(vocabulary) else []
    if min(values) < 0 or max(values) >= len(SYMBOLS):
        return []
    symbols = ("".join(SYMBOLS[value] for value in values)).replace(" ", SPACE_SYMBOL)
    return [vocabulary.get(symbol, UNKNOWN_ID) for symbol in symbols]


def _places_of(ids: Sequence[int]) -> np.ndarray:
    """Phoneme ids as places in SYMBOLS, [S] int64; _read_phonemes turns them back."""
    symbols = {id_: symbol for symbol, id_ in released_vocabulary().items()}
    spoken = (symbols[id_] for id_ in ids)
    written = (" " if symbol == SPACE_SYMBOL else symbol for symbol in spoken)
    places = [SYMBOLS.find(symbol) if len(symbol) == 1 else -1 for symbol in written]
    unknown = SYMBOLS.index(_UNKNOWN_SYMBOL)
    return np.array([unknown if place < 0 else place for place in places], dtype=np.int64)


def _array(file: h5py.File, name: str, key: str) -> np.ndarray | None:
    """An array of an utterance; None where it has none."""
    try:
        return np.asarray(file[name][key][()]) if key in file[name] else None
    except (KeyError, OSError, TypeError, ValueError) as cause:
        raise _Unusable(f"its {key} cannot be read from the HDF5 file ({cause})") from cause


def _write_codes(folder: Path, codes: np.ndarray) -> tuple[str, bool]:
    """The name of a file with these codes, and whether it is new."""
    name = hashlib.sha256(f"{FORMAT_VERSION} codes ".encode() + codes.tobytes()).hexdigest()[:40] + ".npy"
    if (folder / name).is_file():
        return name, False
    with atomic_write(folder / name) as temporary, temporary.open("wb") as out:
        np.save(out, codes, allow_pickle=False)
    return name, True
