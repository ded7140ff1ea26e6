"""The recipe: AR, then NAR, read top to bottom. Set up, evaluate the untouched model, loop, report.

Losses of all batches of a step, over all processes, are summed and divided by their real targets once, so
that a step does not depend on how its utterances were batched. Everything that a step depends on is saved
with a stage's state: a run that was stopped goes on as if it had not been.
"""

import math
from collections.abc import Iterator
from itertools import islice

from accelerate.utils import broadcast

from finetune.control import Control, Wishes
from finetune.data.dataset import train_batches, valid_batches
from finetune.data.prepared import PreparedSet
from finetune.evaluate import Score, evaluate
from finetune.freezing import describe_groups
from finetune.optim import peak_factor
from finetune.precision import faster_precision
from finetune.probe import Estimate, estimate_stage, fit_to_memory
from finetune.stepping import Step, take_step, way_on
from finetune.tracking import record, speak_samples, start_reports
from finetune.trainer import (
    Trainer,
    TrainState,
    save_checkpoint,
    save_other_checkpoints,
    save_state,
    set_batch_sec,
    teach_collation,
)
from vallex.errors import ConfigError
from vallex.model.batch import Batch


def train_stage(trainer: Trainer, data: PreparedSet, control: Control) -> TrainState:
    """Trains a stage that is set up to its end, or until it is asked to stop.

    data: what samples are spoken from
    errors: TrainingError where the loss is not finite
    """
    start_reports(trainer, data)
    stage, state, display = trainer.stage, trainer.state, trainer.display
    _fit(trainer)
    display.stage_started(stage, state.step, trainer.total_steps, _groups(trainer))
    if state.base is None:
        display.note(str(estimate_stage(trainer)))
        if faster := faster_precision(trainer.stage_config.precision, trainer.accelerator.device):
            display.note(f"{stage.upper()}: precision={faster} is several times as fast on this GPU as fp32")
        _check_evaluation(trainer)
        state.base = _score(trainer).to_dict()
        record(trainer, "valid", state.base)
        trainer.folder.update(state)
        display.validated(stage, 0, state.base, state.base)
        # an AR that was trained before this reads texts as it was taught
        is_taught = stage == "nar" and any(phase.phase == "ar" for phase in trainer.folder.result.phases)
        for work in (teach_collation, speak_samples) if is_taught else (speak_samples, teach_collation):
            work(trainer)

    if state.step > trainer.total_steps:
        raise ConfigError(
            f"{stage}: the saved state is at step {state.step}, and these settings end at "
            f"{trainer.total_steps}; raise {stage}.max_steps or {stage}.max_epochs"
        )
    batches = _endless_batches(trainer)
    while True:
        _obey(trainer, control.agree())
        if control.is_stopped or state.step == trainer.total_steps or _is_out_of_patience(trainer):
            break
        step = take_step(trainer, batches)
        is_last = state.step == trainer.total_steps
        is_validated = is_last or state.step % _validation_interval(trainer) == 0
        if state.step % trainer.config.log_every == 0 or is_validated:
            _log(trainer, step)
        if is_validated:
            _validate(trainer)
        display.stepped(state.step)
    if _is_out_of_patience(trainer):
        display.note(
            f"{stage.upper()}: ended at step {state.step}, {state.num_since_best} validations after its best"
        )
    if control.is_stopped:
        save_state(trainer)
    for tracker in trainer.accelerator.trackers:
        tracker.finish()  # not end_training, which would part the processes before the next stage
    trainer.accelerator.free_memory()
    return state


def _obey(trainer: Trainer, wishes: Wishes) -> None:
    """Does what was asked for between two steps; to stop is the loop's."""
    state, stage = trainer.state, trainer.stage
    if wishes.lr is not None:
        state.lr = wishes.lr
        record(trainer, "lr", {"lr": wishes.lr})
        trainer.display.note(f"{stage.upper()}: peak learning rate {wishes.lr:g} from step {state.step} on")
    if wishes.validate:
        if (state.last or {"step": 0})["step"] == state.step:
            trainer.display.note(f"{stage.upper()}: step {state.step} has just been validated")
        else:
            _validate(trainer)
    if wishes.save and not wishes.stop:
        save_state(trainer)
        trainer.display.note(f"{stage.upper()}: saved at step {state.step}")


def plan_stage(trainer: Trainer) -> Estimate:
    """What a stage that is set up would train and take, told too; nothing is trained or written."""
    _fit(trainer)
    estimate = estimate_stage(trainer)
    trainer.display.note(_groups(trainer))
    trainer.display.note(str(estimate))
    trainer.accelerator.free_memory()
    return estimate


def _fit(trainer: Trainer) -> None:
    """Finds how much goes into a batch, where the settings leave that to the machine."""
    if trainer.stage_config.max_batch_sec is None and trainer.state.base is None:
        set_batch_sec(trainer, fit_to_memory(trainer))


def _groups(trainer: Trainer) -> str:
    """What is trained at which rate, as a table under a line that says how long."""
    settings, width = trainer.stage_config, trainer.model.config.d_model
    peak = trainer.lr * peak_factor(settings.schedule, warmup_steps=trainer.warmup_steps, d_model=width)
    head = f"{trainer.stage.upper()}: {settings.optimizer} at lr {peak:g}, {trainer.total_steps} steps"
    table = describe_groups(trainer.model, trainer.stage, trainer.groups, peak)
    return "\n".join([head, *table])


def _endless_batches(trainer: Trainer) -> Iterator[Batch]:
    """Epoch after epoch, from where the state stands; the state counts what was taken."""
    state = trainer.state
    while True:
        loader = train_batches(trainer.train_set, trainer.batching, epoch=state.epoch, skip=state.batch)
        for batch in loader:
            state.batch += 1
            yield batch
        state.epoch, state.batch = state.epoch + 1, 0


def _log(trainer: Trainer, step: Step) -> None:
    """A line of the log for the steps since the last."""
    loss, num_targets, top10, num_frames = trainer.window.tolist()
    trainer.window.zero_()
    state, norm = trainer.state, step.grad_norm
    scored = num_frames if trainer.stage == "ar" else num_targets
    line = {
        "step": state.step,
        "loss": loss / max(num_targets, 1),
        "top10": top10 / max(scored, 1),
        "lr": step.learning_rate,
        # fp16 overflows until it has found its scale; JSON knows no infinity
        "grad_norm": norm if math.isfinite(norm) else None,
        "epoch": state.epoch,
        "seconds": round(state.seconds, 3),
    }
    record(trainer, "train", line)
    trainer.display.logged(line)


def _check_finite(trainer: Trainer, loss: float, what: str) -> None:
    if not math.isfinite(loss):
        raise trainer.processes.shared_fault(
            f"the {trainer.stage.upper()} {what} is {loss} at step {trainer.state.step}: the learning rate "
            f"{trainer.lr:g} is too high for these weights, or fp16 overflowed; lower "
            f"{trainer.stage}.lr or set precision=bf16. {way_on(trainer)}"
        )


def _validation_interval(trainer: Trainer) -> int:
    return trainer.stage_config.validate_every or trainer.steps_per_epoch


def _is_out_of_patience(trainer: Trainer) -> bool:
    return 0 < trainer.stage_config.patience <= trainer.state.num_since_best


def _score(trainer: Trainer, num_batches: int | None = None) -> Score:
    for buffer in trainer.model.buffers():
        broadcast(buffer)  # the prenet's statistics are of what a process has seen
    batches = islice(valid_batches(trainer.valid_set, trainer.batching), num_batches)
    with trainer.weights.whole(trainer.half):
        return evaluate(trainer.model, batches, trainer.stage, trainer.accelerator)


def _check_evaluation(trainer: Trainer) -> None:
    """Scores the untouched model on two batches: what is broken fails in seconds, not behind all of them."""
    loss = _score(trainer, num_batches=2).loss
    if not math.isfinite(loss):
        raise trainer.processes.shared_fault(
            f"the {trainer.stage.upper()} validation loss of the untouched model is {loss}: the checkpoint "
            "holds damaged weights; begin with another. Nothing was trained"
        )


def _validate(trainer: Trainer) -> None:
    """Scores the weights as they are, and their average; saves the first as last, the better as best.

    The state is written before the files that it speaks of; `set_up_stage` mends them after a kill between.
    """
    state, average = trainer.state, trainer.average
    scores = [{**_score(trainer).to_dict(), "step": state.step, "weights": "raw"}]
    _check_finite(trainer, scores[0]["loss"], "validation loss")
    record(trainer, "valid", scores[0])
    if average is not None and average.values:
        with average.in_place():
            scores.append({**_score(trainer).to_dict(), "step": state.step, "weights": average.kind})
        record(trainer, "valid-average", scores[1])
    better = min(scores, key=lambda score: score["loss"])
    state.last = scores[0]
    if state.best is None or better["loss"] < state.best["loss"]:
        state.best, state.num_since_best = better, 0
    else:
        state.num_since_best += 1
    save_state(trainer)
    save_checkpoint(trainer, "last")
    save_other_checkpoints(trainer)
    trainer.folder.update(state)
    trainer.display.validated(trainer.stage, state.step, better, state.base)
    speak_samples(trainer)
