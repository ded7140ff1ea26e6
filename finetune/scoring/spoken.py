"""Sentences spoken by a model, and what each judge says of a sound: of a model's, a recording's, a copy's.

What a model says is judged as it came, without the redraws that hide from a user what goes wrong. A result
without sound gets the worst of each score, for a model must not gain by saying nothing.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from finetune.scoring.hearing import hear_all
from finetune.scoring.judges import JUDGE_RATE_HZ, Judges, reason_of, to_judge_rate
from finetune.scoring.plan import Plan, Sentence, codes_of, recording_of
from finetune.scoring.repeats import is_looping
from finetune.scoring.scores import CODEC_COPIES, FAULTS, RECORDINGS, SCORES
from finetune.scoring.words import error_rate, is_repeated
from vallex.codec import Vocoder
from vallex.codec.audio import SAMPLE_RATE_HZ, load_audio
from vallex.errors import AudioError
from vallex.inference.asr import MAX_HEARD_SEC
from vallex.inference.guards import MIN_FRAMES, has_loop
from vallex.inference.synthesizer import SpeakSettings, Synthesizer
from vallex.model.decoding import generate_batch
from vallex.model.requests import GenerateResult
from vallex.text import PhonemeTokenizer

BATCH_SIZE = 8
SILENCE_PEAK = 1e-4
T = TypeVar("T")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Take:
    """A sentence as a sound.

    wav: [N] float32, 24 kHz
    ended: "eos", "budget", "empty", or "recording" where nobody had to end it
    is_looping: its codes repeat themselves
    """

    wav: Tensor
    ended: str
    is_looping: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of one sentence; None where there is no judge.

    seconds: how long it lasts
    heard: what the recognizer understood
    faulty: 1.0 where `faults` has any of FAULTS, else 0.0
    """

    ended: str
    seconds: float
    heard: str | None
    error_rate: float | None
    similarity: float | None
    naturalness: float | None
    faulty: float
    phonemes_per_sec: float | None
    faults: list[str]


@dataclass(kw_only=True)
class Bench:
    """What sentences are spoken and judged with; the vectors of reference recordings are kept.

    failed: a score to why its judge gave none of some take, though it was there
    """

    plan: Plan
    judges: Judges
    vocoder: Vocoder
    tokenizer: PhonemeTokenizer
    vectors: dict[str, Tensor] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def ask(self, score: str, judge: Callable[[], T]) -> T | None:
        """What a judge says; None, and the reason in `failed`, where it fails."""
        try:
            return judge()
        except Exception as error:  # judges are other people's models: a failure must not end an evaluation
            self.failed.setdefault(score, f"the judge failed ({reason_of(error)})")
        return None

    def reference(self, sentence: Sentence) -> Tensor | None:
        """The mean vector of the speaker's recordings: [D] float32, or None without any."""
        vectors = [self._vector(name) for name in sentence.references]
        return torch.stack(vectors).mean(dim=0) if vectors else None

    def _vector(self, name: str) -> Tensor:
        if name not in self.vectors:
            wav = original_of(self.plan.cuts[name])
            if wav is None:  # the recording is gone: as near as what was prepared comes
                wav = copy_of(self.plan.cuts[name], self.vocoder)
            self.vectors[name] = self.judges.speaker.embed([to_judge_rate(wav, SAMPLE_RATE_HZ)])[0]
        return self.vectors[name]


def original_of(cut) -> Tensor | None:
    """The recording that a cut was made from, [N] float32 at 24 kHz; None where it is no more."""
    path = recording_of(cut)
    try:
        return None if path is None else load_audio(path)
    except AudioError:
        return None


def copy_of(cut, vocoder: Vocoder) -> Tensor:
    """A cut as its codes sound, [N] float32 at 24 kHz: the best that a model of these codes can do."""
    return vocoder.decode(codes_of(cut).unsqueeze(0))[0].detach().cpu()


def speak_plan(
    synthesizer: Synthesizer, bench: Bench, progress: Progress | None = None
) -> tuple[list[Take], float | None]:
    """Every sentence of a plan, and the real-time factor: seconds of work a second of speech."""
    sentences, takes = bench.plan.sentences, []
    began = time.monotonic()
    for start in range(0, len(sentences), BATCH_SIZE):
        part = sentences[start : start + BATCH_SIZE]
        requests = [synthesizer.request(one.encoding, one.prompt, SpeakSettings(), one.seed) for one in part]
        takes += [_take(result, bench.vocoder) for result in generate_batch(synthesizer.model, requests)]
        if progress is not None:
            progress(len(takes), len(sentences))
    worked_sec = time.monotonic() - began
    spoken_sec = sum(len(take.wav) for take in takes) / SAMPLE_RATE_HZ
    return takes, worked_sec / spoken_sec if spoken_sec else None


def _take(result: GenerateResult, vocoder: Vocoder) -> Take:
    if len(result.codes) < MIN_FRAMES:
        return Take(wav=torch.zeros(0), ended="empty")
    wav = vocoder.decode(result.codes.unsqueeze(0))[0].detach().cpu()
    return Take(wav=wav, ended=result.ended, is_looping=has_loop(result.codes[:, 0]))


def judge_takes(
    takes: Sequence[Take | None], bench: Bench, progress: Progress | None = None
) -> list[Row | None]:
    """What the judges say, in the order of the plan's sentences; None where there is no take."""
    sentences = bench.plan.sentences
    heard = _hear(takes, bench)
    rows = []
    for sentence, take, text in zip(sentences, takes, heard, strict=True):
        if take is None:
            rows.append(None)
        elif _is_silent(take):
            rows.append(_silent_row(take, sentence, bench.judges))
        else:
            rows.append(_row(sentence, take, text, bench))
        if progress is not None:
            progress(len(rows), len(takes))
    return rows


def _is_silent(take: Take) -> bool:
    return take.ended == "empty" or float(take.wav.abs().max()) < SILENCE_PEAK


def _hear(takes: Sequence[Take | None], bench: Bench) -> list[str | None]:
    """What is understood of each take; None where nobody hears its language, or there is nothing to hear."""
    heard: list[str | None] = [None] * len(takes)
    by_language: dict[str, list[int]] = {}
    for place, take in enumerate(takes):
        language = bench.plan.sentences[place].language
        if take is not None and not _is_silent(take) and language in bench.judges.recognizers:
            by_language.setdefault(language, []).append(place)
    for language, places in by_language.items():
        recognizer = bench.judges.recognizers[language]
        wavs = [
            to_judge_rate(takes[place].wav, SAMPLE_RATE_HZ)[: int(MAX_HEARD_SEC * JUDGE_RATE_HZ)]
            for place in places
        ]
        found = bench.ask("error_rate", partial(hear_all, recognizer, wavs, language))
        if found is not None:
            if None in found:
                bench.failed.setdefault("error_rate", "a take could not be read by who should hear it")
            for place, hearing in zip(places, found, strict=True):
                heard[place] = hearing
    return heard


def _silent_row(take: Take, sentence: Sentence, judges: Judges) -> Row:
    is_heard = sentence.language in judges.recognizers
    return Row(
        ended=take.ended,
        seconds=len(take.wav) / SAMPLE_RATE_HZ,
        heard="" if is_heard else None,
        error_rate=SCORES["error_rate"].worst if is_heard else None,
        similarity=SCORES["similarity"].worst if judges.speaker else None,
        naturalness=SCORES["naturalness"].worst if judges.naturalness else None,
        faulty=SCORES["faulty"].worst,
        phonemes_per_sec=None,
        faults=["empty"],
    )


def _row(sentence: Sentence, take: Take, heard: str | None, bench: Bench) -> Row:
    wav, judges = to_judge_rate(take.wav, SAMPLE_RATE_HZ), bench.judges
    similarity = naturalness = None
    if judges.speaker:
        similarity = bench.ask("similarity", partial(_similarity, sentence, wav, bench))
    if judges.naturalness:
        naturalness = bench.ask("naturalness", lambda: _known(judges.naturalness.rate([wav])[0]))
    faults = {
        "runaway": take.ended == "budget",
        "looping": take.is_looping or is_looping(take.wav, SAMPLE_RATE_HZ),
        "repeated": heard is not None and is_repeated(sentence.text, heard, sentence.language),
    }
    return Row(
        ended=take.ended,
        seconds=len(take.wav) / SAMPLE_RATE_HZ,
        heard=heard,
        error_rate=None if heard is None else error_rate(sentence.text, heard, sentence.language),
        similarity=similarity,
        naturalness=naturalness,
        faulty=float(any(faults.values())),
        phonemes_per_sec=len(sentence.encoding.ids) / (len(take.wav) / SAMPLE_RATE_HZ),
        faults=[name for name, has_it in faults.items() if has_it],
    )


def _similarity(sentence: Sentence, wav: Tensor, bench: Bench) -> float | None:
    reference = bench.reference(sentence)
    if reference is None:
        return None
    return _known(torch.cosine_similarity(bench.judges.speaker.embed([wav])[0], reference, dim=0))


def _known(value: Tensor | float) -> float | None:
    """A judge's number; None where it is none."""
    return float(value) if math.isfinite(value) else None


def ceiling_takes(bench: Bench) -> dict[str, list[Take | None]]:
    """The recordings of the validation sentences, and their copies through codec and vocoder."""
    originals, copies = [], []
    for sentence in bench.plan.sentences:
        wav = None if sentence.cut is None else original_of(sentence.cut)
        originals.append(None if wav is None else Take(wav=wav, ended="recording"))
        copies.append(
            None
            if sentence.cut is None
            else Take(wav=copy_of(sentence.cut, bench.vocoder), ended="recording")
        )
    return {RECORDINGS: originals, CODEC_COPIES: copies}


def system_record(rows: Sequence[dict | None], fingerprint: str, real_time_factor: float | None) -> dict:
    """What is written of a system: its rows, each the values of a Row, and their means."""
    there = [row for row in rows if row is not None]
    known = {name: [row[name] for row in there if row[name] is not None] for name in SCORES}
    return {
        "fingerprint": fingerprint,
        "rows": list(rows),
        "means": {name: sum(own) / len(own) if own else None for name, own in known.items()},
        "num": {name: len(own) for name, own in known.items()},
        "faults": {
            name: sum(name in row["faults"] for row in there) / len(there) if there else None
            for name in FAULTS
        },
        "real_time_factor": real_time_factor,
    }
