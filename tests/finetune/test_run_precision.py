"""What a stage computes in: what accelerate's file asks for too, and nothing that a GPU only emulates."""

import pytest
import torch

from finetune import train
from finetune.display import Display
from finetune.precision import check_precision, faster_precision
from finetune.run import finetune
from vallex.errors import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """Plays a GPU that multiplies in bf16, or emulates it as a T4 does."""

    def play(name: str, has_bf16: bool) -> None:
        supported = {True: True, False: has_bf16}
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported[including_emulation]
        )

    return play


@pytest.mark.parametrize(("asked", "precision"), [("bf16", "fp32"), ("fp16", "bf16"), ("fp8", "fp32")])
def test_run_when_accelerates_file_asks_for_another_precision_then_is_refused(
    make_spec, make_config, monkeypatch, tmp_path, asked, precision
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    told = f"precision is {precision}, and accelerate's .* asks for {asked}; set precision={asked}, or take"
    with pytest.raises(ConfigError, match=told):
        finetune(make_spec(tmp_path, config=make_config(precision=precision)), Display())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("asked", "precision"), [("no", "bf16"), ("bf16", "bf16"), ("no", "fp32")])
def test_precision_when_accelerate_asks_for_none_or_the_same_then_goes(monkeypatch, asked, precision):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    check_precision(precision, CPU, "precision")


def test_bf16_when_a_gpu_only_emulates_it_then_is_refused_and_not_proposed(gpu):
    gpu("Tesla T4", has_bf16=False)
    with pytest.raises(
        ConfigError, match=r"ar.precision is bf16, which a Tesla T4 only .*; set ar.precision=fp"
    ):
        check_precision("bf16", GPU, "ar.precision")
    check_precision("fp16", GPU, "ar.precision")
    assert faster_precision("fp32", GPU) is None


def test_fp32_when_a_gpu_has_bf16_then_that_is_proposed(gpu):
    gpu("NVIDIA L4", has_bf16=True)
    check_precision("bf16", GPU, "precision")
    assert faster_precision("fp32", GPU) == "bf16"
    assert faster_precision("bf16", GPU) is None
    assert faster_precision("fp32", CPU) is None


def test_run_in_fp32_when_another_is_faster_there_then_is_told_once_a_stage(
    make_spec, monkeypatch, tmp_path, notes
):
    monkeypatch.setattr(train, "faster_precision", lambda precision, device: "bf16")
    finetune(make_spec(tmp_path, stages=("ar",)), notes)
    told = [line for line in notes.lines if "precision" in line]
    assert told == ["AR: precision=bf16 is several times as fast on this GPU as fp32"]
