"""A run from end to end: what is trained on what, whether it fits, its folder, its stages, its result."""

import datetime
import platform
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache

import vallex
from finetune.branching import check_branch, command_to_train_on, make_branch
from finetune.checks import check_combinations
from finetune.config import StageConfig
from finetune.control import STOP_FILE, Control
from finetune.data.cuts import table_of
from finetune.data.prepared import PreparedSet, load_prepared
from finetune.display import Display
from finetune.environment import describe_machine
from finetune.failures import ADVICE, failure_of, is_out_of_memory, one_line
from finetune.heartbeat import beat
from finetune.model_setup import check_compiler, check_groups, taught_config, untaught_half
from finetune.optim import check_optimizer
from finetune.origins import check_unchanged, moved, record_places
from finetune.probe import Estimate
from finetune.processes import Processes
from finetune.results import MACHINE, PhaseResult, RunResult, read_config, read_result, this_process
from finetune.run_folder import AdapterOrigin, RunFolder, begin_folder, still_running, taking_up
from finetune.run_spec import RunSpec, differences
from finetune.sharing import check_sharing
from finetune.train import plan_stage, train_stage
from finetune.trainer import make_accelerator, set_up_stage
from vallex.errors import CheckpointError, ConfigError, DataError, RunError, TrainingError
from vallex.files import remove_temporaries, sha256_of
from vallex.model.added_languages import extend_languages
from vallex.model.checkpoint import RELEASED_SIZES, load_model
from vallex.model.config import ModelConfig
from vallex.model.network import VALLE
from vallex.model.runs import is_run_folder
from vallex.model.toy import TOY_CONFIG, toy_model
from vallex.text import PhonemeTokenizer


def finetune(
    spec: RunSpec, display: Display, *, resume: bool = False, resume_from: Path | None = None
) -> RunResult:
    """Trains what a spec asks for, scores it, and returns the result, whose status is "done" or "stopped".

    Each of several processes calls it; all come to the same result, and the first alone writes and shows.

    resume: go on with the run of this name
    resume_from: the folder of another run, whose saved state this new one goes on from
    errors: VallexError where something does not fit; nothing is trained then, and no folder is made. An
        error during training is recorded in the run's result and raised, as a TrainingError where it is
        a VallexError
    """
    processes = Processes()
    # a name with the time in it may differ from process to process
    spec = replace(spec, name=processes.gather_objects(spec.name)[0])
    path = spec.runs_dir / spec.name
    display = display if processes.is_main else Display()
    with processes.watched(), processes.main_first():
        if processes.is_main:
            _check_folder(path, spec, resume)
            if resume_from is not None:
                check_branch(resume_from, spec)
        model, data = _load_and_check(spec, processes)
        # refused is what the machine lacks: a precision, a tracker, a compiler
        accelerators = [make_accelerator(stage, spec.config) for stage in spec.stages]
        check_compiler(spec.config, accelerators[0].device)
    with processes.watched():
        begun_in = path if resume else resume_from
        folder = _open_folder(path, spec, model, data, begun_in, processes)
    starting = [model]  # taken out by the first stage, and gone when that ends
    del model
    with folder.beating():
        before, began = folder.result.seconds, time.monotonic()
        try:
            control = Control(processes, path / STOP_FILE, display.note)
            with processes.watched(), control.listening():
                status = _train_stages(spec, starting, data, folder, display, control)
        except BaseException as error:
            failure = failure_of(error)
            # what failed first is told, though a full disk may keep it out of the result
            with suppress(OSError):
                folder.write(seconds=round(before + time.monotonic() - began, 3))
                folder.end_early(None if isinstance(error, KeyboardInterrupt) else one_line(failure))
            if failure is not error:
                raise failure from error
            raise
        folder.write(status=status, seconds=round(before + time.monotonic() - began, 3))
        processes.part()
        if status == "done" and folder.is_writer and spec.config.evaluation != "none":
            from finetune.scoring.run_scores import score_at_the_end

            score_at_the_end(spec, folder, display)
    return folder.result


def plan(spec: RunSpec, display: Display) -> list[Estimate]:
    """What each stage of a run would take, measured with its model and data here; nothing is written.

    errors: as `finetune`, before anything is trained
    """
    processes = Processes()
    display = display if processes.is_main else Display()
    _check_folder(spec.runs_dir / spec.name, spec, resume=False)
    estimates = []
    for stage in spec.stages:
        try:
            estimates.append(_plan_stage(stage, spec, display, processes))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(f"out of memory: the {stage.upper()} has no room here. {ADVICE}") from error
        clear_device_cache(garbage_collection=True)
    return estimates


def _plan_stage(stage: str, spec: RunSpec, display: Display, processes: Processes) -> Estimate:
    model, data = _load_and_check(spec, processes)  # anew: a stage makes the model its own
    result = _new_result(spec, model, data)
    folder = RunFolder(spec.runs_dir / spec.name, result, is_writer=False)
    return plan_stage(set_up_stage(stage, spec.config, model, data, folder, display, processes))


def _load_and_check(spec: RunSpec, processes: Processes) -> tuple[VALLE, PreparedSet]:
    """The model that a run begins with, and its data, where all that was asked for goes together."""
    if spec.num_processes != processes.num:
        raise ConfigError(
            f"run {spec.name!r}: it is for {spec.num_processes} processes, and {processes.num} of them run; "
            f"start it with --processes {spec.num_processes}, or by accelerate launch"
        )
    check_combinations(spec.config, spec.stages, init=spec.init, add_languages=spec.add_languages)
    check_sharing(spec.config, spec.stages, processes)
    for stage in spec.stages:
        own: StageConfig = getattr(spec.config, stage)
        check_optimizer(own.optimizer, beta1=own.beta1, beta2=own.beta2, weight_decay=own.weight_decay)
    tokenizer = PhonemeTokenizer()
    data = load_prepared(spec.prepared, tokenizer_fingerprint=tokenizer.fingerprint)
    model = starting_model(spec)
    check_fit(spec, model, data)
    taught_config(model.config, spec.config)  # refuses what the checkpoint refuses
    check_groups(spec.config, spec.stages, model.config)
    model.provenance = _provenance(spec, model, data)
    return model, data


def starting_model(spec: RunSpec) -> VALLE:
    """The untouched model: the checkpoint, the toy or a new one, with the languages that were added."""
    if spec.config.from_scratch:
        model = _new_model(spec)
    else:
        model = toy_model() if spec.init is None else load_model(spec.init)
    if spec.add_languages:
        extend_languages(model, spec.add_languages)
    return model


def _new_model(spec: RunSpec) -> VALLE:
    """A model of a checkpoint's sizes, or of the toy's or the released, with weights that nothing taught."""
    if spec.init is not None:
        known = load_model(spec.init)
        config, is_toy = known.config, bool(known.provenance.get("toy"))
    else:
        config, is_toy = TOY_CONFIG if spec.offline_toy else ModelConfig(**RELEASED_SIZES), spec.offline_toy
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.config.seed)
        model = VALLE(config)
    model.provenance = {"toy": is_toy}
    return model


def check_fit(spec: RunSpec, model: VALLE, data: PreparedSet) -> None:
    """Whether checkpoint, data and stages can work together; every fault at once."""
    config, faults = model.config, []
    is_toy = model.provenance.get("toy") or (spec.init is None and not spec.config.from_scratch)
    if is_toy and not spec.offline_toy:
        raise CheckpointError(
            f"{spec.init or 'the toy model'}: made with toy weights; add --offline-toy to go on from it "
            "all the same, or begin with the released model"
        )
    if data.info.is_toy and not spec.offline_toy:
        raise DataError(
            f"{spec.prepared}: its codes were made with toy weights; add --offline-toy to train on them all "
            "the same, or prepare it again with the real EnCodec"
        )
    codec = model.provenance.get("codec")
    if codec and codec["fingerprint"] != data.info.codec_fingerprint:
        faults.append(
            f"it was trained on codes of {codec['name']}, the data has codes of {data.info.codec_name}"
        )
    tokenizer = model.provenance.get("tokenizer")
    if tokenizer not in (None, data.info.tokenizer_fingerprint):
        faults.append(
            f"it was trained on phonemes of tokenizer {tokenizer[:12]}, the data has phonemes of "
            f"{data.info.tokenizer_fingerprint[:12]}"
        )
    tables = table_of(data.train), table_of(data.valid)
    max_id = max(table.max_phoneme_id for table in tables)
    languages = {language for table in tables for language in table.languages}
    num_codebooks = min(table.min_num_codebooks for table in tables)
    if max_id >= config.num_text_tokens:
        faults.append(f"it knows phoneme ids below {config.num_text_tokens}, the data has {max_id}")
    if unknown := sorted(languages - set(config.languages)):
        faults.append(
            f"it speaks {', '.join(config.languages)}, the data has {', '.join(sorted(languages))}; teach it "
            f"{', '.join(unknown)} with --add-language"
        )
    if num_codebooks < config.num_quantizers:
        # with more than the model has, the first are the codes of a lower bandwidth: EnCodec's are nested
        faults.append(f"it has {config.num_quantizers} codebooks, the data has {num_codebooks}")
    if "nar" in spec.stages and model.nar is None:
        faults.append("it has one quantizer and no NAR half; train it with --stage ar")
    if faults:
        raise CheckpointError(
            f"{spec.init or 'the toy model'}: does not fit {spec.prepared}: {'; '.join(faults)}"
        )


def _check_folder(path: Path, spec: RunSpec, resume: bool) -> None:
    if "/" in spec.name or "@" in spec.name or spec.name.startswith(".") or not spec.name:
        raise ConfigError(
            f"run name {spec.name!r}: it names one folder, so no '/' and no '@' in it, and no '.' before it"
        )
    if not resume:
        if path.exists():
            raise RunError(
                f"run {spec.name!r}: {path} is there already; take another --name, or go on with it: --resume"
            )
        return
    if not is_run_folder(path):
        raise RunError(f"run {spec.name!r}: there is none in {spec.runs_dir}/ to resume; leave out --resume")
    result = read_result(path)
    if result.status == "running":
        raise RunError(still_running(path, result))
    elsewhere = moved(path, spec)
    differing = [
        line
        for name, line in differences(read_config(path), spec.settings()).items()
        if name not in elsewhere
    ]
    if differing:
        raise ConfigError(
            f"run {spec.name!r}: cannot go on with other settings than it began with: "
            f"{'; '.join(differing)}. Leave them out, or go on in another run: "
            f"--resume-from {spec.name} --name {spec.name}-2"
        )


def _provenance(spec: RunSpec, model: VALLE, data: PreparedSet) -> dict:
    """What is written into every checkpoint of the run, and checked wherever one is used."""
    info = data.info
    return {
        "toy": bool(model.provenance.get("toy")) or info.is_toy,
        "codec": {"name": info.codec_name, "fingerprint": info.codec_fingerprint, "toy": info.is_toy},
        "tokenizer": info.tokenizer_fingerprint,
        "data": info.fingerprint,
        "init": None if spec.init is None else str(spec.init),
        "added_languages": model.provenance.get("added_languages", {}),
    }


def _open_folder(
    path: Path, spec: RunSpec, model: VALLE, data: PreparedSet, begun_in: Path | None, processes: Processes
) -> RunFolder:
    """The run's folder, made or taken up by the first process, then read by the others.

    begun_in: the folder that it goes on from, its own or another run's
    """
    if processes.is_main:
        begun = replace(_new_result(spec, model, data), process=this_process())
        if begun_in is None:
            begin_folder(path, spec.settings(), begun)
            folder = RunFolder(path, begun, adapter_stages=_adapter_stages(spec))
        else:
            check_unchanged(begun_in, begun)
            if begun_in != path:
                make_branch(begun_in, path, spec)
            folder = _resumed_folder(path, spec, begun)
    processes.wait()
    if not processes.is_main:
        folder = RunFolder(path, read_result(path), is_writer=False, adapter_stages=_adapter_stages(spec))
    return folder


def _resumed_folder(path: Path, spec: RunSpec, now: RunResult) -> RunFolder:
    with taking_up(path) as result:
        remove_temporaries(path)
        beat(path)  # the beat that is there may be old
        folder = RunFolder(path, result, adapter_stages=_adapter_stages(spec))
        first, here = asdict(result), asdict(now)
        folder.write(
            status="running",
            phases=[p if p.status == "done" else replace(p, status="running") for p in result.phases],
            process=this_process(),
            error=None,
            resumed_on={name: here[name] for name in MACHINE if here[name] != first[name]} or None,
            **record_places(path, spec, result),
        )
    return folder


def _new_result(spec: RunSpec, model: VALLE, data: PreparedSet) -> RunResult:
    toy = model.provenance["toy"]
    return RunResult(
        name=spec.name,
        status="running",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=0.0,
        preset=spec.preset,
        init={
            "path": None if spec.init is None else str(spec.init),
            "fingerprint": None if spec.init is None or spec.init.is_dir() else sha256_of(spec.init),
            "toy": spec.init is None and spec.offline_toy,
        },
        data={
            "path": str(spec.prepared),
            "fingerprint": data.info.fingerprint,
            "num_cuts": data.info.num_train + data.info.num_valid,
            "toy": data.info.is_toy,
        },
        versions={
            "vallex": vallex.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        },
        toy=toy,
        phases=[PhaseResult(phase=stage, status="running", steps=0) for stage in spec.stages],
        environment=describe_machine(),
        seed=spec.config.seed,
    )


def _train_stages(
    spec: RunSpec,
    starting: list[VALLE],
    data: PreparedSet,
    folder: RunFolder,
    display: Display,
    control: Control,
) -> str:
    """Stage after stage; the NAR goes on from the AR's best weights. "done" or "stopped".

    starting: the model that the run begins with; it is emptied, so that nothing holds the model afterwards
    """
    done = {phase.phase for phase in folder.result.phases if phase.status == "done"}
    if done.issuperset(spec.stages):
        display.note(f"It was done already. To train it on: {command_to_train_on(spec)}")
    model = starting.pop()
    if note := untaught_half(model, spec.config, spec.stages):
        display.note(note)
    provenance, untaught = model.provenance, model.config
    for stage in spec.stages:
        if stage in done:
            folder.remove_state(stage)  # a kill may have come before it
            continue
        if stage == "nar" and "ar" in spec.stages:
            model = load_model(folder.checkpoint("ar", "best"))
            model.provenance = provenance
            # its NAR is as at the start: its base is scored on texts as it knows them
            model.config = replace(model.config, text_bos=untaught.text_bos, text_eos=untaught.text_eos)
        if stage in folder.adapter_stages:
            folder.adapter_origin = _adapter_origin(spec, model, folder, stage)
        try:
            trainer = set_up_stage(stage, spec.config, model, data, folder, display, control.processes)
            state = train_stage(trainer, data, control)
            # with its optimizer three or four times a model, which the next stage needs on the device
            del trainer, model
            clear_device_cache(garbage_collection=True)
        finally:
            display.stage_ended()
        folder.close_stage(state, "stopped" if control.is_stopped else "done")
        control.processes.wait()  # until what it has written is there
        if control.is_stopped:
            folder.end_early(None)
            return "stopped"
    return "done"


def _adapter_stages(spec: RunSpec) -> frozenset[str]:
    return frozenset(stage for stage in spec.stages if getattr(spec.config, stage).lora_rank)


def _adapter_origin(spec: RunSpec, model: VALLE, folder: RunFolder, stage: str) -> AdapterOrigin:
    """What a stage's adapter goes on: the run's start, with the AR's adapter, or the AR's trained weights."""
    from vallex.model.adapter import fingerprint_of, read_adapter

    if stage == "nar" and "ar" in folder.adapter_stages:
        beside = read_adapter(folder.checkpoint("ar", "best"))
        return AdapterOrigin(base=beside.base, beside=beside)
    path = None if spec.init is None else str(spec.init.resolve())
    if stage == "nar" and "ar" in spec.stages:
        # from the adapter's own folder, so that a run folder can be moved
        path = f"../{folder.checkpoint('ar', 'best').name}"
    return AdapterOrigin(base={"path": path, "fingerprint": fingerprint_of(model)})
