"""A whole evaluation: the base and checkpoints on the same sentences, the ceiling, the verdict, what won.

Models are loaded one after the other. What was scored before with the same weights, sentences and judges is
taken from the cache, so that the base costs nothing after the first run.
"""

import datetime
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

from torch import Tensor

from finetune.data.cuts import table_of
from finetune.data.prepared import PreparedSet, load_prepared, read_info
from finetune.scoring.cache import ScoreCache, save_sounds
from finetune.scoring.judges import find_judges, reason_of
from finetune.scoring.plan import Plan, make_plan, spread
from finetune.scoring.scores import (
    BASE,
    CODEC_COPIES,
    RECORD_VERSION,
    RECORDINGS,
    SOUND_FILES,
    Evaluation,
    sound_path,
)
from finetune.scoring.spoken import Bench, Row, Take, ceiling_takes, judge_takes, speak_plan, system_record
from finetune.scoring.teacher import (
    Spoken,
    TeacherScores,
    fingerprint_of_spoken,
    other_voices,
    spoken_of,
    teacher_record,
    teacher_scores,
)
from finetune.scoring.verdict import compare_to_base, decide
from vallex.codec import load_codec, load_vocoder
from vallex.codec.encodec import EncodecCodec
from vallex.errors import AudioError, CheckpointError, DataError
from vallex.inference.synthesizer import Synthesizer
from vallex.model.network import VALLE
from vallex.sources import CHECKPOINTS_DIR, COMPONENTS
from vallex.text import PhonemeTokenizer

LOSSES_ONLY = "losses"
"""A size of an evaluation in which nothing is spoken; the others are those of a plan."""
MAX_VALID = 500
"""Validation recordings that are scored teacher-forced: the codes of all are in memory, for every model."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec:
    """What is asked for.

    base: loads the untouched model
    checkpoints: name to what loads it, the first one being the best by loss
    size: quick, standard or full; "losses" speaks nothing
    others: a prepared set of other voices, in place of the shipped ones
    sounds: where the sounds go, a folder a system; None keeps them in the cache only
    offline_toy: toy weights were asked for
    device: where models, codec and judges compute, a name of torch's
    """

    base: Callable[[], VALLE]
    checkpoints: Mapping[str, Callable[[], VALLE]]
    prepared: Path
    cache: Path
    size: str = "standard"
    seed: int = 0
    others: Path | None = None
    sounds: Path | None = None
    offline_toy: bool = False
    device: str = "cpu"
    checkpoints_dir: Path = CHECKPOINTS_DIR


@dataclass(kw_only=True)
class _Work:
    """What an evaluation has found so far.

    spoken: name of a system to what the cache keeps of it, and under which key
    unkept: the sounds of systems that the cache has not, for a judge failed or there was no room
    teacher: kind of voices to name to scores
    """

    spec: EvaluationSpec
    data: PreparedSet
    cache: ScoreCache
    bench: Bench | None
    gaps: dict[str, str]
    voices: dict[str, list[Spoken]]
    progress: Progress
    toy: bool
    spoken: dict[str, tuple[dict, str]] = field(default_factory=dict)
    unkept: dict[str, list[Tensor | None]] = field(default_factory=dict)
    teacher: dict[str, dict[str, TeacherScores]] = field(default_factory=dict)


def evaluate_checkpoints(spec: EvaluationSpec, progress: Progress | None = None) -> Evaluation:
    """Scores the base and the checkpoints, and says which is better.

    progress: called with what is being done, and how much of how much is done
    errors: CheckpointError, DataError where model, data and toy weights do not go together
    """
    began = time.monotonic()
    work = _set_up(spec, progress or (lambda what, done, total: None))
    for name, load in {BASE: spec.base, **spec.checkpoints}.items():
        model = load().to(spec.device)
        _check_model(name, model, work)
        _score_model(name, model, work)
        del model
    if work.bench is not None:
        _score_ceiling(work)
        _copy_sounds(work)
    return _record(work, time.monotonic() - began)


def _record(work: _Work, seconds: float) -> Evaluation:
    spec, bench = work.spec, work.bench
    spoken = work.spoken if bench else {}
    found = compare_to_base({name: entry["rows"] for name, (entry, _) in spoken.items()}, [*spec.checkpoints])
    winner, verdict, why = decide(found, [*spec.checkpoints])
    return Evaluation(
        version=RECORD_VERSION,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        size=spec.size,
        seed=spec.seed,
        toy=work.toy,
        data={"path": str(spec.prepared), "fingerprint": work.data.info.fingerprint},
        plan=bench.plan.fingerprint if bench else None,
        left_out=bench.plan.left_out if bench else [],
        judges=bench.judges.names() if bench else {},
        gaps=work.gaps,
        sentences=_sentences(bench.plan) if bench else [],
        systems={
            name: system_record(entry["rows"], entry["fingerprint"], entry["real_time_factor"])
            for name, (entry, _) in spoken.items()
        },
        differences={name: {key: vars(one) for key, one in own.items()} for name, own in found.items()},
        teacher_forced={kind: teacher_record(scores, BASE) for kind, scores in work.teacher.items()},
        verdict=verdict,
        winner=winner,
        why=why,
    )


def _set_up(spec: EvaluationSpec, progress: Progress) -> _Work:
    # the fixed sentences are read as those that were trained on
    unknown_words = read_info(spec.prepared).settings.get("unknown_words", "keep")
    tokenizer = PhonemeTokenizer(unknown_words=unknown_words)
    data = load_prepared(spec.prepared, tokenizer_fingerprint=tokenizer.fingerprint)
    if data.info.is_toy and not spec.offline_toy:
        raise DataError(
            f"{spec.prepared}: its codes were made with toy weights; add --offline-toy to score on them all "
            "the same, or prepare it again with the real EnCodec"
        )
    gaps: dict[str, str] = {}
    codec = _load_codec(spec, data, gaps)
    bench = None
    if spec.size == LOSSES_ONLY:
        gaps["spoken"] = "only losses were asked for"
    elif codec is None:
        gaps["spoken"] = gaps["codec"]
    else:
        bench = _bench(spec, data, tokenizer, codec, gaps)
    return _Work(
        spec=spec,
        data=data,
        cache=ScoreCache(spec.cache),
        bench=bench,
        gaps=gaps,
        voices=_voices(spec, codec, tokenizer, data, gaps),
        progress=progress,
        toy=data.info.is_toy,
    )


def _load_codec(spec: EvaluationSpec, data: PreparedSet, gaps: dict[str, str]) -> EncodecCodec | None:
    """The codec that the set's codes are of, or a gap."""
    toy = data.info.is_toy
    if not toy and not _is_there("codec", spec, gaps):
        return None
    codec = load_codec(toy=toy, device=spec.device, checkpoints_dir=spec.checkpoints_dir)
    if codec.fingerprint != data.info.codec_fingerprint:
        gaps["codec"] = f"the set has codes of {data.info.codec_name}, here is another {codec.name}"
        return None
    return codec


def _is_there(component: str, spec: EvaluationSpec, gaps: dict[str, str]) -> bool:
    """Whether weights can be loaded without fetching them: nobody asked for a download."""
    is_there = COMPONENTS[component].is_present(spec.checkpoints_dir)
    if not is_there:
        gaps[component] = (
            f"{COMPONENTS[component].what.partition(':')[0]} is not in {spec.checkpoints_dir} "
            f"(vallex download --only {component})"
        )
    return is_there


def _bench(spec, data, tokenizer, codec, gaps) -> Bench | None:
    plan = make_plan(data, tokenizer, spec.size, spec.seed)
    if not plan.sentences:
        gaps["spoken"] = f"no sentence can be spoken: {'; '.join(plan.left_out[:3])}"
        return None
    where = {"device": spec.device, "checkpoints_dir": spec.checkpoints_dir}
    vocoder = codec  # its own decoder sounds worse, but the same for every system
    if data.info.is_toy or _is_there("vocoder", spec, gaps):
        vocoder = load_vocoder(codec=codec, toy=data.info.is_toy, **where)
    judges = find_judges(plan.languages, **where)
    gaps.update(judges.gaps)
    return Bench(plan=plan, judges=judges, vocoder=vocoder, tokenizer=tokenizer)


def _voices(spec, codec, tokenizer, data, gaps) -> dict[str, list[Spoken]]:
    """What is scored teacher-forced: "valid" and "others", where they are there."""
    valid, num_valid = data.valid, len(table_of(data.valid))
    if num_valid > MAX_VALID:
        valid = spread(valid, spec.seed)[:MAX_VALID]
        gaps["valid"] = f"losses are of {MAX_VALID} of its {num_valid} recordings, each speaker in turn"
    voices = {"valid": spoken_of(valid)}
    if not voices["valid"]:
        del voices["valid"]
        gaps["valid"] = "the prepared set has no validation split"
    if spec.others is not None:
        others = load_prepared(spec.others, tokenizer_fingerprint=tokenizer.fingerprint)
        if others.info.codec_fingerprint != data.info.codec_fingerprint:
            raise DataError(
                f"{spec.others}: has codes of {others.info.codec_name}, {spec.prepared} of "
                f"{data.info.codec_name}; prepare both with the same codec"
            )
        voices["others"] = spoken_of([*others.train, *others.valid])
    elif codec is None:
        gaps["others"] = gaps["codec"]
    else:
        others = other_voices(codec, tokenizer)
        trained_on = set(table_of(data.train).ids)
        if any(one.utterance.id in trained_on for one in others):
            gaps["others"] = "the set is the shipped sample, whose voices are the other voices"
        else:
            voices["others"] = others
    return voices


def _check_model(name: str, model: VALLE, work: _Work) -> None:
    provenance = model.provenance
    if provenance.get("toy"):
        work.toy = True
        if not work.spec.offline_toy:
            raise CheckpointError(
                f"{name}: made with toy weights; add --offline-toy to score it all the same, as the noise "
                "that it is"
            )
    codec = provenance.get("codec")
    if codec and codec["fingerprint"] != work.data.info.codec_fingerprint:
        raise CheckpointError(
            f"{name}: was trained on codes of {codec['name']}, {work.spec.prepared} has codes of "
            f"{work.data.info.codec_name}; prepare the recordings again with the codec that it knows"
        )
    needed = {code for own in work.voices.values() for one in own for code in one.utterance.languages}
    if unknown := sorted(needed - set(model.config.languages)):
        raise CheckpointError(
            f"{name}: speaks {', '.join(model.config.languages)}, the data are in {', '.join(unknown)} too; "
            "score it on data in its languages"
        )


def _score_model(name: str, model: VALLE, work: _Work) -> None:
    """Teacher-forced and, where there is a bench, spoken."""
    from vallex.model.adapter import fingerprint_of  # peft takes seconds to import

    fingerprint = fingerprint_of(model)
    identity = [fingerprint, repr(model.config), work.spec.device.partition(":")[0]]
    for kind, spoken in work.voices.items():
        key = work.cache.key("losses", identity, fingerprint_of_spoken(spoken))
        entry = work.cache.read(key)
        if entry is None:
            what = f"{name}: losses on {'validation' if kind == 'valid' else 'other voices'}"
            entry = vars(teacher_scores(model, spoken, partial(work.progress, what)))
            work.cache.write(key, entry)
        work.teacher.setdefault(kind, {})[name] = TeacherScores(**entry)
    if work.bench is None:
        return
    try:
        synthesizer = Synthesizer(model, work.bench.vocoder, work.bench.tokenizer)
    except CheckpointError as error:  # it has other codebooks than a vocoder takes
        work.bench, work.gaps["spoken"] = None, f"{name}: {error}"
        return
    key = _key(work, "model", identity)
    entry = work.cache.read(key)
    if entry is None:
        takes, factor = speak_plan(synthesizer, work.bench, partial(work.progress, f"{name}: speaking"))
        entry = _judge(name, takes, (fingerprint, factor), key, work)
    work.spoken[name] = entry, key


def _score_ceiling(work: _Work) -> None:
    keys = {name: _key(work, name) for name in (RECORDINGS, CODEC_COPIES)}
    entries = {name: work.cache.read(key) for name, key in keys.items()}
    if None in entries.values():
        for name, takes in ceiling_takes(work.bench).items():
            entries[name] = _judge(name, takes, (keys[name], None), keys[name], work)
    for name, entry in entries.items():
        if any(row is not None for row in entry["rows"]):
            work.spoken[name] = entry, keys[name]
        else:
            work.gaps[name] = "no recording of these sentences is there"


def _judge(
    name: str, takes: list[Take | None], facts: tuple[str, float | None], key: str, work: _Work
) -> dict:
    """What is written of a system; kept in the cache unless a judge failed, who may not fail again.

    facts: its fingerprint and real-time factor
    """
    work.bench.failed.clear()
    rows = judge_takes(takes, work.bench, partial(work.progress, f"{name}: listening"))
    for score, reason in work.bench.failed.items():
        work.gaps.setdefault(score, f"{name}: {reason}")
    fingerprint, factor = facts
    entry = {
        "rows": [None if row is None else asdict(row) for row in rows],
        "fingerprint": fingerprint,
        "real_time_factor": factor,
    }
    wavs = [None if take is None else take.wav for take in takes]
    if work.bench.failed or not work.cache.write(key, entry, wavs, _comment(name, fingerprint)):
        work.unkept[name] = wavs
    return entry


def _comment(name: str, fingerprint: str) -> str | None:
    # by fingerprint: the same weights may be scored under another name later
    synthetic = name not in (RECORDINGS, CODEC_COPIES)
    return f"synthetic speech by vallex, weights {fingerprint[:12]}" if synthetic else None


def _key(work: _Work, *parts: object) -> str:
    bench = work.bench
    measured = [one.name for one in fields(Row)]
    return work.cache.key(bench.plan.fingerprint, bench.judges.names(), bench.vocoder.name, measured, *parts)


def _copy_sounds(work: _Work) -> None:
    """Only now that all is scored: until then the sounds of the evaluation before are there.

    Of the folder's files only those go that an evaluation wrote: a user may have named any folder.
    """
    folder = work.spec.sounds
    if folder is None:
        return
    try:
        for old in folder.glob(SOUND_FILES):
            old.unlink()
            with suppress(OSError):  # something else is there too
                old.parent.rmdir()
        for name, (_, key) in work.spoken.items():
            own = folder / sound_path(name, 0).parent
            if name in work.unkept:
                save_sounds(own, work.unkept[name], _comment(name, work.spoken[name][0]["fingerprint"]))
            else:
                work.cache.copy_sounds(key, own)
    except (OSError, AudioError) as error:  # the scores are worth more than the sounds
        work.gaps["sounds"] = f"they could not be written to {folder} ({reason_of(error)})"


def _sentences(plan: Plan) -> list[dict]:
    return [
        {
            "id": sentence.id,
            "text": sentence.text,
            "language": sentence.language,
            "speaker": sentence.speaker,
            "source": sentence.source,
            "prompt": sentence.prompt_id,
            "seed": sentence.seed,
        }
        for sentence in plan.sentences
    ]
