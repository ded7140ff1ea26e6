"""Where a stage's figures and samples go: metrics.jsonl, and any tracker that accelerate knows."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from accelerate.tracking import get_available_trackers

from finetune.data.prepared import PreparedSet
from finetune.failures import is_out_of_memory, release_unused
from finetune.run_folder import SAMPLES_FOLDER
from finetune.samples import Sample, Speaker, make_speaker
from finetune.untouched import generators_kept
from vallex.codec.audio import SAMPLE_RATE_HZ
from vallex.errors import AudioError, ConfigError
from vallex.inference.prompts import NUM_CODEBOOKS

if TYPE_CHECKING:
    from finetune.trainer import Trainer

LOGS_FOLDER = "logs"
PROJECT = "vallex"


def tracker_names(setting: str) -> list[str]:
    """The trackers that a setting names; ConfigError where one is not known or not installed."""
    names = [name.strip() for name in setting.split(",") if name.strip() not in ("", "none")]
    available = [str(tracker.value) for tracker in get_available_trackers()]
    if unknown := [name for name in names if name not in available]:
        raise ConfigError(
            f"trackers has {', '.join(map(repr, unknown))}; installed here are "
            f"{', '.join(available) or 'none'} (others that accelerate knows: pip install them), or none"
        )
    return names


def start_reports(trainer: "Trainer", data: PreparedSet) -> None:
    """Begins a stage's part of each tracker, or goes on from its step, and finds what speaks."""
    accelerator, folder, state = trainer.accelerator, trainer.folder, trainer.state
    if accelerator.log_with:
        settings = {name: str(value) for name, value in asdict(trainer.config).items()}
        # what a killed process wrote that the state lacks is forgotten, be it all
        purge = {"purge_step": 0 if state.base is None else state.step + 1}
        accelerator.init_trackers(PROJECT, config=settings, init_kwargs={"tensorboard": purge})
    if trainer.config.samples and folder.is_writer:
        num_codebooks = trainer.model.config.num_quantizers
        speaker: Speaker | str = f"it takes {NUM_CODEBOOKS} codebooks, and this model has {num_codebooks}"
        if num_codebooks == NUM_CODEBOOKS:
            # networks that are made to be loaded draw weights first, which must not move those of a run
            with generators_kept(accelerator.device):
                where = folder.path / SAMPLES_FOLDER
                speaker = make_speaker(where, data, trainer.config.samples, trainer.config.seed)
        if isinstance(speaker, str):
            trainer.display.note(f"No samples are spoken: {speaker}")
        else:
            trainer.speaker = speaker


def record(trainer: "Trainer", kind: str, figures: dict) -> None:
    """A line of metrics.jsonl; its numbers go to the trackers by `kind/name`."""
    line = {"stage": trainer.stage, "kind": kind, "step": trainer.state.step, **figures}
    trainer.folder.log(line)
    if not trainer.accelerator.trackers:
        return
    values = {
        f"{kind}/{name}": value
        for name, value in line.items()
        if isinstance(value, int | float) and name not in ("step", "seconds")
    }
    for codebook, own in figures.get("codebooks", {}).items():
        values |= {f"{kind}/codebook {codebook} {name}": value for name, value in own.items()}
    trainer.accelerator.log(values, step=trainer.state.step)


def speak_samples(trainer: "Trainer") -> None:
    """Speaks the samples with the weights as they are, into `samples/STAGE-step-N/` and TensorBoard.

    Where that goes wrong it is noted, and training goes on: what it goes on from is saved already.
    """
    state, stage, samples = trainer.state, trainer.stage, []
    with trainer.weights.whole(trainer.model):  # of which all processes have a part
        if trainer.speaker is not None:
            samples = _spoken(trainer)
    if trainer.speaker is not None:
        best_step = None if state.best is None else state.best["step"]
        trainer.folder.remove_old_samples(stage, trainer.config.keep, best_step)
    for tracker in trainer.accelerator.trackers:
        if tracker.name == "tensorboard":
            for sample in samples:
                name = f"samples/{sample.name}"
                tracker.writer.add_audio(name, sample.wav[None], state.step, SAMPLE_RATE_HZ)


def _spoken(trainer: "Trainer") -> list[Sample]:
    step = trainer.state.step
    try:
        return trainer.speaker.speak(trainer.model, f"{trainer.stage}-step-{step}")
    except (OSError, AudioError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
    # outside the handler, whose traceback holds what filled the memory
    release_unused()
    trainer.display.note(
        f"{trainer.stage.upper()}: samples of step {step} are missing, and training goes on: {reason}"
    )
    return []
