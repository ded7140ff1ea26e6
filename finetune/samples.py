"""The same few sentences, spoken at each validation from the same seeds, so that a run can be heard.

They are the first of the scores' own plan, with the recordings of those that have one beside them.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from finetune.data.prepared import PreparedSet
from finetune.evaluate import evaluating
from finetune.scoring.judges import Judges
from finetune.scoring.plan import Sentence, make_plan
from finetune.scoring.spoken import Bench, copy_of, original_of, speak_plan
from finetune.untouched import generators_kept
from vallex.codec import load_codec, load_vocoder
from vallex.codec.audio import SAMPLE_RATE_HZ, save_audio
from vallex.errors import AudioError, DataError, WeightsError
from vallex.inference.synthesizer import Synthesizer
from vallex.model.network import VALLE
from vallex.text import PhonemeTokenizer

REFERENCE_FOLDER = "reference"
TEXTS_FILE = "sentences.txt"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sentence as it was spoken; wav: [N] float32, 24 kHz; path: its file."""

    name: str
    wav: torch.Tensor
    path: Path


class Speaker:
    """Speaks a few fixed sentences of a prepared set into a run's folder of samples."""

    def __init__(self, folder: Path, data: PreparedSet, num_sentences: int, seed: int):
        """folder: gets a folder a validation, the recordings in `reference/`, and the texts

        errors: WeightsError, DataError where there is nothing to speak with
        """
        self.folder = folder
        tokenizer = PhonemeTokenizer()
        codec = load_codec(toy=data.info.is_toy)
        if codec.fingerprint != data.info.codec_fingerprint:
            raise DataError(f"the set has codes of {data.info.codec_name}, here is another {codec.name}")
        try:
            vocoder = load_vocoder(codec=codec, toy=data.info.is_toy)
        except WeightsError:
            vocoder = codec  # its own decoder sounds worse, but always the same
        plan = make_plan(data, tokenizer, "quick", seed)
        sentences = _first_of_each_kind(plan.sentences, num_sentences)
        if not sentences:
            raise DataError(f"no sentence can be spoken: {'; '.join(plan.left_out[:3])}")
        plan = replace(plan, sentences=sentences)
        self.bench = Bench(plan=plan, judges=Judges(), vocoder=vocoder, tokenizer=tokenizer)

    def write_references(self) -> None:
        """The texts, and the recordings of the sentences that have one."""
        folder = self.folder / REFERENCE_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        sentences = self.bench.plan.sentences
        lines = [f"{name_of(sentence)}\t{sentence.text}\n" for sentence in sentences]
        (self.folder / TEXTS_FILE).write_text("".join(lines), encoding="utf-8")
        for sentence in sentences:
            if sentence.cut is not None:
                wav = original_of(sentence.cut)
                wav = copy_of(sentence.cut, self.bench.vocoder) if wav is None else wav
                save_audio(folder / f"{name_of(sentence)}.wav", wav, software="vallex")

    def speak(self, model: VALLE, name: str) -> list[Sample]:
        """Speaks every sentence into the folder `name`; leaves mode and generators as they were."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        with generators_kept(next(model.parameters()).device), evaluating(model):
            synthesizer = Synthesizer(model, self.bench.vocoder, self.bench.tokenizer)
            takes, _ = speak_plan(synthesizer, self.bench)
        comment = f"synthetic speech by vallex, {self.folder.parent.name} {name}"
        samples = []
        for sentence, take in zip(self.bench.plan.sentences, takes, strict=True):
            # an empty one is a file too: who listens to them in order misses none
            wav = take.wav if len(take.wav) else torch.zeros(SAMPLE_RATE_HZ // 10)
            path = folder / f"{name_of(sentence)}.wav"
            save_audio(path, wav, software="vallex", comment=comment)
            samples.append(Sample(name=name_of(sentence), wav=wav, path=path))
        return samples


def make_speaker(folder: Path, data: PreparedSet, num_sentences: int, seed: int) -> Speaker | str:
    """What speaks, with its references written; or why nothing does, which is no reason not to train."""
    try:
        speaker = Speaker(folder, data, num_sentences, seed)
        speaker.write_references()
    except (WeightsError, DataError, AudioError) as error:
        return str(error)
    return speaker


def name_of(sentence: Sentence) -> str:
    """A sentence's file name, without suffix."""
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in sentence.id)


def _first_of_each_kind(sentences: list[Sentence], count: int) -> list[Sentence]:
    """Validation sentences and fixed ones in turn."""
    kinds = [[one for one in sentences if one.source == source] for source in ("validation", "fixed")]
    turns = [(place, kind, one) for kind, own in enumerate(kinds) for place, one in enumerate(own)]
    return [one for *_, one in sorted(turns, key=lambda turn: turn[:2])[:count]]
