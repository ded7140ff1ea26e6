"""Which sentences are spoken, in whose voice, from which prompt and seed: the same for every system.

Validation texts and a fixed list, each with a prompt of its speaker that is another recording than the
sentence's own. A plan has a fingerprint, so that scores of other sentences are never compared with these.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import torch
from lhotse import MonoCut
from torch import Tensor

from finetune.data.prepared import PreparedSet
from vallex.errors import ConfigError
from vallex.inference.prompts import NUM_CODEBOOKS, VoicePrompt
from vallex.text import PhonemeEncoding, PhonemeTokenizer

PROMPT_SEC = 4.0
"""What a prompt's length should be near to; of those there are, the nearest is taken."""
MIN_PROMPT_SEC, MAX_PROMPT_SEC = 1.0, 12.0
MAX_REFERENCES = 5
"""Recordings of a speaker that a result's voice is compared with."""

SIZES = {"quick": (6, 4), "standard": (10, 10), "full": (30, 20)}
"""Sentences of the validation split, and of the fixed list, which fills up what the split lacks."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sentence:
    """What is to be said, by whom, and what it is compared with.

    source: "validation" or "fixed"
    encoding: its phonemes
    prompt: a recording of the speaker, of other words
    cut: the recording of the sentence itself; None for a fixed one
    references: ids of recordings of the speaker, never `cut`
    """

    id: str
    text: str
    language: str
    speaker: str
    source: str
    seed: int
    encoding: PhonemeEncoding
    prompt: VoicePrompt
    prompt_id: str
    cut: MonoCut | None
    references: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The sentences of an evaluation.

    cuts: the prompts and references, by id; not the whole set, which may be large
    left_out: what could not be taken, a line each
    """

    sentences: list[Sentence]
    cuts: dict[str, MonoCut] = field(repr=False)
    left_out: list[str]
    fingerprint: str

    @property
    def languages(self) -> list[str]:
        """Codes of what will be heard."""
        return sorted({sentence.language for sentence in self.sentences})


def fixed_sentences(language: str) -> list[str]:
    """The fixed list of a language; empty where there is none."""
    path = files("finetune.scoring") / "sentences" / f"{language}.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def make_plan(data: PreparedSet, tokenizer: PhonemeTokenizer, size: str = "standard", seed: int = 0) -> Plan:
    """Chooses sentences from a prepared set and the fixed lists; the same ones each time.

    size: a key of SIZES
    errors: ConfigError where there is no such size
    """
    if size not in SIZES:
        raise ConfigError(f"evaluation {size!r} is not known; it is one of {', '.join(SIZES)}")
    num_valid, num_fixed = SIZES[size]
    train, valid = list(data.train), list(data.valid)
    voices = _Voices(train, valid)
    left_out: list[str] = []
    sentences = []
    for cut in spread(valid, seed):
        sentence = _validation_sentence(cut, voices, seed)
        if isinstance(sentence, Sentence):
            sentences.append(sentence)
        else:
            left_out.append(sentence)
        if len(sentences) == num_valid:
            break
    # more fixed ones where validation has too few: what can be shown depends on how many there are
    num_fixed += num_valid - len(sentences)
    sentences += _fixed(voices, tokenizer, num_fixed, seed, left_out)
    wanted = {name for one in sentences for name in (one.prompt_id, *one.references)}
    cuts = {cut.id: cut for cut in [*train, *valid] if cut.id in wanted}
    return Plan(
        sentences=sentences,
        cuts=cuts,
        left_out=left_out,
        fingerprint=_fingerprint(sentences, cuts, data),
    )


class _Voices:
    """The recordings of each speaker: what is a prompt, what a voice is compared with."""

    def __init__(self, train: Sequence[MonoCut], valid: Sequence[MonoCut]):
        self.train, self.valid = _by_speaker(train), _by_speaker(valid)
        # prompts come from what was trained on; a speaker who was not has only validation
        self.own = {name: self.train.get(name) or cuts for name, cuts in {**self.valid, **self.train}.items()}

    def prompt_cut(self, speaker: str, besides: str | None = None) -> MonoCut | None:
        """The recording whose length is nearest to PROMPT_SEC; None where there is no other."""
        usable = [
            cut
            for cut in self.own[speaker]
            if cut.id != besides
            and MIN_PROMPT_SEC <= cut.duration <= MAX_PROMPT_SEC
            and len(_languages_of(cut)) == 1
        ]
        return min(usable, key=lambda cut: (abs(cut.duration - PROMPT_SEC), cut.id), default=None)

    def references(self, speaker: str, besides: str | None = None) -> tuple[str, ...]:
        """The longest recordings: a voice is known better from them."""
        others = [cut for cut in self.own[speaker] if cut.id != besides]
        longest = sorted(others, key=lambda cut: (-cut.duration, cut.id))[:MAX_REFERENCES]
        return tuple(cut.id for cut in longest)

    def language(self, speaker: str) -> str:
        """What a speaker speaks most."""
        counts = Counter(code for cut in self.own[speaker] for code in _languages_of(cut))
        return max(counts, key=lambda code: (counts[code], code))


def _validation_sentence(cut: MonoCut, voices: _Voices, seed: int) -> Sentence | str:
    """The sentence of a validation recording, or why there is none."""
    supervision = cut.supervisions[0]
    speaker, languages = str(supervision.speaker), supervision.custom["phoneme_languages"]
    prompt = voices.prompt_cut(speaker, besides=cut.id)
    if prompt is None:
        return f"{cut.id}: speaker {speaker} has no other recording of 1 to 12 s to be a prompt"
    if not supervision.text:
        return f"{cut.id}: its words are not known"
    return _sentence(
        id=f"validation {cut.id}",
        text=supervision.text,
        language=max(sorted(set(languages)), key=languages.count),
        source="validation",
        speaker=speaker,
        seed=seed,
        # as it was prepared, whatever front end read it
        encoding=PhonemeEncoding(
            ids=supervision.custom["phoneme_ids"],
            languages=languages,
            phonemes="",
            unknown=[],
            unknown_words=[],
            dropped=[],
        ),
        prompt=prompt,
        cut=cut,
        voices=voices,
    )


def _fixed(
    voices: _Voices, tokenizer: PhonemeTokenizer, count: int, seed: int, left_out: list[str]
) -> list[Sentence]:
    """The fixed lists, dealt out to the speakers, those with the most recordings first."""
    speakers = []
    for name in sorted(voices.own, key=lambda name: (-len(voices.own[name]), name)):
        if voices.prompt_cut(name) is None:
            left_out.append(f"fixed sentences for speaker {name}: no recording of 1 to 12 s to be a prompt")
        elif not fixed_sentences(voices.language(name)):
            left_out.append(
                f"fixed sentences for speaker {name}: there is no list in {voices.language(name)}"
            )
        else:
            speakers.append(name)
    longest = max((len(fixed_sentences(voices.language(name))) for name in speakers), default=0)
    sentences = []
    for place in range(min(count, longest)):
        speaker = speakers[place % len(speakers)]
        language = voices.language(speaker)
        text = fixed_sentences(language)[place % len(fixed_sentences(language))]
        sentences.append(
            _sentence(
                id=f"fixed {language} {place + 1}",
                text=text,
                language=language,
                source="fixed",
                speaker=speaker,
                seed=seed,
                encoding=tokenizer.encode(text, language=language),
                prompt=voices.prompt_cut(speaker),
                cut=None,
                voices=voices,
            )
        )
    return sentences


def _sentence(*, id, text, language, source, speaker, seed, encoding, prompt, cut, voices) -> Sentence:
    custom = prompt.supervisions[0].custom
    return Sentence(
        id=id,
        text=text,
        language=language,
        source=source,
        speaker=speaker,
        # far from the seeds of redraws, which follow each other
        seed=int.from_bytes(hashlib.sha256(f"{seed}/{id}".encode()).digest()[:4]),
        encoding=encoding,
        prompt=VoicePrompt(
            codes=codes_of(prompt)[:, :NUM_CODEBOOKS],
            text=torch.tensor(custom["phoneme_ids"]),
            language=_languages_of(prompt)[0],
            transcript=prompt.supervisions[0].text or "",
        ),
        prompt_id=prompt.id,
        cut=cut,
        references=voices.references(speaker, besides=None if cut is None else cut.id),
    )


def codes_of(cut: MonoCut) -> Tensor:
    """The codes of a prepared cut: [T, K] int64."""
    return torch.from_numpy(cut.load_codes().astype("int64"))


def recording_of(cut: MonoCut) -> Path | None:
    """The file that a cut was made from, where it still is."""
    path = Path(cut.recording.sources[0].source) if cut.recording and cut.recording.sources else None
    return path if path is not None and path.is_file() else None


def _by_speaker(cuts: Iterable[MonoCut]) -> dict[str, list[MonoCut]]:
    own = defaultdict(list)
    for cut in sorted(cuts, key=lambda cut: cut.id):
        own[str(cut.supervisions[0].speaker)].append(cut)
    return dict(own)


def spread(cuts: Sequence[MonoCut], seed: int) -> list[MonoCut]:
    """Cuts from each speaker in turn, ordered by a hash: it changes little when cuts come or go."""
    turns = []
    for own in _by_speaker(cuts).values():
        ranked = sorted(own, key=lambda cut: hashlib.sha256(f"{seed}/{cut.id}".encode()).hexdigest())
        turns += list(enumerate(ranked))
    turns.sort(key=lambda turn: (turn[0], turn[1].id))
    return [cut for _, cut in turns]


def _languages_of(cut: MonoCut) -> list[str]:
    return list(dict.fromkeys(cut.supervisions[0].custom["phoneme_languages"]))


def _fingerprint(sentences: Sequence[Sentence], cuts: dict[str, MonoCut], data: PreparedSet) -> str:
    """SHA-256 over all that decides what is spoken and what it is compared with.

    The set's own fingerprint stands for codes and phonemes. Recordings may come and go without it: the copy
    through the codec takes the place of one that is gone.
    """
    rows = [
        [
            sentence.id,
            sentence.text,
            sentence.encoding.ids,
            sentence.seed,
            sentence.prompt_id,
            [[name, recording_of(cuts[name]) is None] for name in sentence.references],
            sentence.cut is not None and recording_of(sentence.cut) is None,
        ]
        for sentence in sentences
    ]
    deciding = [data.info.fingerprint, data.info.codec_fingerprint, rows]
    return hashlib.sha256(json.dumps(deciding).encode()).hexdigest()
