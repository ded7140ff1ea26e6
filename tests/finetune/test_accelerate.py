"""`accelerate launch`, as the README shows it: with its configuration file, to the end of a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.launch import _free_port
from finetune.results import read_result

TIMEOUT_SEC = 120


def readme_configuration(**changes: str) -> str:
    """The README's file for accelerate, for other machines."""
    readme = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    text = readme.partition("```yaml\n# two_nodes.yaml")[2].partition("\n")[2].partition("```")[0]
    lines = text.splitlines(keepends=True)
    for name, value in changes.items():
        [place] = [place for place, line in enumerate(lines) if line.startswith(f"{name}: ")]
        lines[place] = f"{name}: {value}\n"
    return "".join(lines)


@pytest.mark.parametrize(("kind", "num_machines"), [("MULTI_GPU", 1), ("FSDP", 2)])
def test_accelerate_launch_when_of_two_processes_then_trains_to_the_end_and_writes_once(
    tiny_prepared, tiny_checkpoint, read_log, tmp_path, kind, num_machines
):
    configuration = readme_configuration(
        distributed_type=kind,
        num_machines=num_machines,
        num_processes=2,
        main_process_ip="127.0.0.1",
        main_process_port=_free_port(),
    )
    (tmp_path / "nodes.yaml").write_text(configuration, encoding="utf-8")
    settings = ["max_steps=4", "max_batch_sec=1", "validate_every=2", "log_every=1", "trackers=tensorboard"]
    options = ["--init", tiny_checkpoint, "--preset", "smoke", "--name", "run", "--runs", tmp_path]
    command = [tiny_prepared, *options, *(f"--set={each}" for each in settings), "--set=evaluation=losses"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", tmp_path / "nodes.yaml"]
    machines = [
        subprocess.Popen(
            list(map(str, [*launch, "--machine_rank", rank, "-m", "finetune.cli", "finetune", *command])),
            env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_machines)
    ]
    told = [machine.communicate(timeout=TIMEOUT_SEC) for machine in machines]
    assert [machine.returncode for machine in machines] == [0] * num_machines, told[0][1]
    assert "".join(out for out, _ in told).count("\nAR step 4: validation loss") == 1
    result = read_result(tmp_path / "run")
    assert [(phase.status, phase.steps) for phase in result.phases] == [("done", 4), ("done", 4)]
    assert (result.status, result.evaluation.size) == ("done", "losses")
    lines = [(line["stage"], line["kind"], line["step"]) for line in read_log(tmp_path / "run")]
    assert [line for line in lines if line[1] == "train"] == [
        (stage, "train", step) for stage in ("ar", "nar") for step in range(1, 5)
    ]
    assert len(set(lines)) == len(lines)
    for stage in ("ar", "nar"):
        # TensorBoard's own; what it makes of the settings lies in folders below
        assert len(list((tmp_path / f"run/logs/{stage}/vallex").glob("events.out.tfevents.*"))) == 1
