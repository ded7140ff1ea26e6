"""A whole evaluation: the base and checkpoints on the same sentences, the ceiling, the verdict, what won.

Models are loaded one after the other. What was scored before with the same weights, sentences and judges is
taken from the cache, so that the base costs nothing after the first run.
"""

import datetime
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from finetune.data.prepared import PreparedSet, load_prepared
from finetune.scoring.cache import ScoreCache
from finetune.scoring.judges import find_judges
from finetune.scoring.plan import Plan, make_plan
from finetune.scoring.scores import (
    BASE,
    BETTER,
    CODEC_COPIES,
    NO_DIFFERENCE,
    RECORD_VERSION,
    RECORDINGS,
    SCORES,
    UNKNOWN,
    WORSE,
    Evaluation,
)
from finetune.scoring.spoken import Bench, ceiling_takes, judge_takes, speak_plan, system_record
from finetune.scoring.statistics import Difference, differences
from finetune.scoring.teacher import (
    Spoken,
    TeacherScores,
    other_voices,
    spoken_of,
    teacher_record,
    teacher_scores,
)
from vallex.codec import load_codec, load_vocoder
from vallex.errors import CheckpointError, DataError, WeightsError
from vallex.model.network import VALLE
from vallex.sources import CHECKPOINTS_DIR
from vallex.text import PhonemeTokenizer, TextCollator

LOSSES_ONLY = "losses"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec:
    """What is asked for.

    base: loads the untouched model
    checkpoints: name to what loads it, the first one being the run's best
    size: quick, standard or full; "losses" speaks nothing
    others: a prepared set of other voices, in place of the shipped ones
    sounds: where the sounds go, a folder a system; None keeps them in the cache only
    offline_toy: toy weights were asked for
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
    checkpoints_dir: Path = CHECKPOINTS_DIR


@dataclass(kw_only=True)
class _Work:
    """What an evaluation has found so far."""

    spec: EvaluationSpec
    data: PreparedSet
    tokenizer: PhonemeTokenizer
    cache: ScoreCache
    bench: Bench | None
    gaps: dict[str, str]
    voices: dict[str, list[Spoken]]
    progress: Progress
    systems: dict[str, dict] = field(default_factory=dict)
    teacher: dict[str, dict[str, TeacherScores]] = field(default_factory=dict)
    toy: bool = False


def evaluate_checkpoints(spec: EvaluationSpec, progress: Progress | None = None) -> Evaluation:
    """Scores the base and the checkpoints, and says which is better.

    progress: called with what is being done, and how much of how much is done
    errors: CheckpointError, DataError where model, data and toy weights do not go together
    """
    began = time.monotonic()
    work = _set_up(spec, progress or (lambda what, done, total: None))
    for name, load in {BASE: spec.base, **spec.checkpoints}.items():
        model = load()
        _check_toy(name, model, work)
        _score_model(name, model, work)
        del model
    if work.bench is not None:
        _score_ceiling(work)
    found = _differences(work)
    winner, verdict, why = _decide(found, list(spec.checkpoints))
    plan = work.bench.plan if work.bench else None
    return Evaluation(
        version=RECORD_VERSION,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 3),
        size=spec.size,
        seed=spec.seed,
        toy=work.toy,
        data={"path": str(spec.prepared), "fingerprint": work.data.info.fingerprint},
        plan=plan and plan.fingerprint,
        left_out=plan.left_out if plan else [],
        judges=work.bench.judges.names() if work.bench else dict.fromkeys(("error_rate", "similarity")),
        gaps=work.gaps,
        sentences=_sentences(plan) if plan else [],
        systems=work.systems,
        differences={name: {key: vars(one) for key, one in own.items()} for name, own in found.items()},
        teacher_forced={kind: teacher_record(scores, BASE) for kind, scores in work.teacher.items()},
        verdict=verdict,
        winner=winner,
        why=why,
    )


def _set_up(spec: EvaluationSpec, progress: Progress) -> _Work:
    tokenizer = PhonemeTokenizer()
    data = load_prepared(spec.prepared, tokenizer_fingerprint=tokenizer.fingerprint)
    if data.info.is_toy and not spec.offline_toy:
        raise DataError(
            f"{spec.prepared}: its codes were made with toy weights; add --offline-toy to score on them all "
            "the same, or prepare it again with the real EnCodec"
        )
    gaps: dict[str, str] = {}
    collator = TextCollator(language_codes=_languages(data))
    voices = {"valid": spoken_of(data.valid, collator)}
    if not voices["valid"]:
        gaps["valid"] = "the prepared set has no validation split"
    try:
        codec = load_codec(toy=data.info.is_toy, checkpoints_dir=spec.checkpoints_dir)
    except WeightsError as error:
        codec, gaps["codec"] = None, str(error)
    if codec is not None and codec.fingerprint != data.info.codec_fingerprint:
        gaps["codec"] = f"the set has codes of {data.info.codec_name}, here is another {codec.name}"
        codec = None
    bench = None
    if spec.size == LOSSES_ONLY:
        gaps["spoken"] = "only losses were asked for"
    elif codec is None:
        gaps["spoken"] = f"no codec: {gaps['codec']}"
    else:
        bench = _bench(spec, data, tokenizer, codec, gaps)
    _add_other_voices(voices, spec, codec, tokenizer, data, gaps)
    return _Work(
        spec=spec,
        data=data,
        tokenizer=tokenizer,
        cache=ScoreCache(spec.cache),
        bench=bench,
        gaps=gaps,
        voices=voices,
        progress=progress,
        toy=data.info.is_toy,
    )


def _bench(spec, data, tokenizer, codec, gaps) -> Bench | None:
    plan = make_plan(data, tokenizer, spec.size, spec.seed)
    if not plan.sentences:
        gaps["spoken"] = f"no sentence can be spoken: {'; '.join(plan.left_out[:3])}"
        return None
    try:
        vocoder = load_vocoder(codec=codec, toy=data.info.is_toy, checkpoints_dir=spec.checkpoints_dir)
    except WeightsError as error:
        # the codec's own decoder sounds worse, but the same for every system
        vocoder, gaps["vocos"] = codec, f"EnCodec's own decoder speaks: {error}"
    judges = find_judges(plan.languages, spec.checkpoints_dir)
    gaps.update(judges.gaps)
    return Bench(plan=plan, judges=judges, vocoder=vocoder, tokenizer=tokenizer)


def _add_other_voices(voices, spec, codec, tokenizer, data, gaps) -> None:
    if spec.others is not None:
        others = load_prepared(spec.others, tokenizer_fingerprint=tokenizer.fingerprint)
        if others.info.codec_fingerprint != data.info.codec_fingerprint:
            raise DataError(
                f"{spec.others}: has codes of {others.info.codec_name}, {spec.prepared} of "
                f"{data.info.codec_name}; prepare both with the same codec"
            )
        collator = TextCollator(language_codes=_languages(others))
        voices["others"] = spoken_of([*others.train, *others.valid], collator)
    elif codec is None:
        gaps["others"] = f"no codec: {gaps['codec']}"
    else:
        others = other_voices(codec, tokenizer)
        trained_on = {cut.id for cut in data.train}
        if any(one.utterance.id in trained_on for one in others):
            gaps["others"] = "the set is the shipped sample, whose voices are the other voices"
        else:
            voices["others"] = others


def _check_toy(name: str, model: VALLE, work: _Work) -> None:
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
    unknown = {code for one in work.voices["valid"] for code in one.utterance.languages}
    if unknown := sorted(unknown - set(model.config.languages)):
        raise CheckpointError(
            f"{name}: speaks {', '.join(model.config.languages)}, {work.spec.prepared} has "
            f"{', '.join(unknown)}; score it on data in its languages"
        )


def _score_model(name: str, model: VALLE, work: _Work) -> None:
    """Teacher-forced and, where there is a bench, spoken."""
    for kind, spoken in work.voices.items():
        what = f"{name}: losses on {'the validation split' if kind == 'valid' else 'other voices'}"
        scores = teacher_scores(
            model, spoken, lambda done, total, what=what: work.progress(what, done, total)
        )
        work.teacher.setdefault(kind, {})[name] = scores
    if work.bench is None:
        return
    from vallex.model.adapter import fingerprint_of

    fingerprint = fingerprint_of(model)
    key = _key(work, "model", fingerprint, repr(model.config))
    entry = work.cache.read(key)
    if entry is None:
        takes, factor = speak_plan(model, work.bench, partial(work.progress, f"{name}: speaking"))
        rows = judge_takes(takes, work.bench, partial(work.progress, f"{name}: listening"))
        work.cache.write(key, rows, [take.wav for take in takes], real_time_factor=factor)
        entry = {"rows": rows, "real_time_factor": factor}
    _keep(name, key, entry, fingerprint, work)


def _score_ceiling(work: _Work) -> None:
    sources = [s.cut.codes.array.storage_key if s.cut else None for s in work.bench.plan.sentences]
    keys = {name: _key(work, name, sources) for name in (RECORDINGS, CODEC_COPIES)}
    entries = {name: work.cache.read(key) for name, key in keys.items()}
    if None in entries.values():
        for name, takes in ceiling_takes(work.bench).items():
            rows = judge_takes(takes, work.bench, partial(work.progress, f"{name}: listening"))
            wavs = [None if take is None else take.wav for take in takes]
            work.cache.write(keys[name], rows, wavs, real_time_factor=None)
            entries[name] = {"rows": rows, "real_time_factor": None}
    for name, entry in entries.items():
        if any(row is not None for row in entry["rows"]):
            _keep(name, keys[name], entry, keys[name], work)
        else:
            work.gaps[name] = "no recording of these sentences is there"


def _keep(name: str, key: str, entry: dict, fingerprint: str, work: _Work) -> None:
    work.systems[name] = system_record(entry["rows"], fingerprint, entry["real_time_factor"])
    if work.spec.sounds is not None:
        work.cache.copy_sounds(key, work.spec.sounds / sounds_folder(name))


def _key(work: _Work, *parts: object) -> str:
    bench = work.bench
    return work.cache.key(bench.plan.fingerprint, bench.judges.names(), bench.vocoder.name, *parts)


def sounds_folder(name: str) -> str:
    """The folder of a system's sounds."""
    return name.removesuffix(".safetensors").replace("/", "-").replace(" ", "-")


def _differences(work: _Work) -> dict[str, dict[str, Difference]]:
    """Each checkpoint against the base."""
    if BASE not in work.systems:
        return {}
    values = {
        name: {score: [row and row[score] for row in system["rows"]] for score in SCORES}
        for name, system in work.systems.items()
    }
    return {name: differences(values[name], values[BASE]) for name in work.spec.checkpoints}


def _decide(
    found: Mapping[str, Mapping[str, Difference]], names: list[str]
) -> tuple[str | None, str | None, str]:
    """The checkpoint that won, its verdict over all, and the verdict in words.

    Of those that are not worse than the base, the one with the highest mean over all wins; the first, which
    is the best by loss, where they are equal. Where all are worse, none does.
    """
    known = [name for name in names if name in found and found[name]["overall"].verdict != UNKNOWN]
    if not known:
        return None, None, "nothing was compared by ear"
    best = max(known, key=lambda name: (found[name]["overall"].mean, -names.index(name)))
    usable = [name for name in known if found[name]["overall"].verdict != WORSE]
    winner = max(usable, key=lambda name: (found[name]["overall"].mean, -names.index(name)), default=None)
    judged = winner or best
    return winner, found[judged]["overall"].verdict, in_words(found[judged], judged)


def in_words(own: Mapping[str, Difference], name: str) -> str:
    """The verdict on one checkpoint: over all, then each score with its difference and interval."""
    overall = own["overall"]
    lead = {
        BETTER: f"{name} is better than the base",
        WORSE: f"{name} is worse than the base",
        NO_DIFFERENCE: f"no difference of {name} to the base that {overall.num_pairs} sentences can show",
    }[overall.verdict]
    said = []
    for score in SCORES.values():
        one = own[score.name]
        if score.step and one.mean is not None:
            span = "" if one.low is None else f" ({one.low:+.3f} to {one.high:+.3f})"
            said.append(f"{score.title} {one.mean:+.3f}{span}: {one.verdict}")
    return f"{lead}. {'; '.join(said)}"


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


def _languages(data: PreparedSet) -> tuple[str, ...]:
    """Every language of a set, so that a collator knows them all."""
    codes = {
        code for cut in [*data.train, *data.valid] for code in cut.supervisions[0].custom["phoneme_languages"]
    }
    return tuple(sorted(codes))
