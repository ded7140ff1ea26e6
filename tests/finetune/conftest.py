"""Small prepared sets made directly from codes, and tiny random models, so that training needs no codec."""

import gc
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import MonoCut

from finetune.config import FinetuneConfig, StageConfig
from finetune.data.cuts import codes_manifest, make_cut, make_recording
from finetune.data.dataset import Utterance, collate_utterances
from finetune.data.prepared import (
    CODES_FOLDER,
    FORMAT_VERSION,
    MANIFESTS,
    PreparedInfo,
    cut_line,
    write_info,
    write_manifest,
)
from finetune.display import Display
from finetune.results import read_result
from finetune.run_spec import RunSpec
from vallex.files import sha256_of
from vallex.model.batch import Batch
from vallex.model.checkpoint import load_model, save_model
from vallex.model.config import ModelConfig
from vallex.model.network import VALLE
from vallex.text import PhonemeTokenizer, TextCollator

FRAME_RATE_HZ = 75


@pytest.fixture(autouse=True, scope="module")
def every_test_on_one_thread(one_thread):
    """See one_thread."""


@pytest.fixture(autouse=True, scope="module")
def quick_garbage_collection():
    """Each stage ends with a collection; looking through all imports takes longer than a tiny run."""
    gc.freeze()
    yield
    gc.unfreeze()


class _Notes(Display):
    def __init__(self):
        self.lines = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def notes() -> Display:
    """A display that keeps what it is told in `lines`."""
    return _Notes()


def write_prepared(folder: Path, splits: dict[str, list[Utterance]], **changes) -> Path:
    """A prepared set of utterances, each with its own split; `changes` are of its PreparedInfo."""
    (folder / CODES_FOLDER).mkdir(parents=True)
    digest = hashlib.sha256()
    for split, utterances in splits.items():
        cuts = (_cut(folder / CODES_FOLDER, one) for one in utterances)
        write_manifest(folder / MANIFESTS[split], map(cut_line, cuts))
        for one in utterances:
            digest.update(repr((split, one.id, one.phoneme_ids, one.codes.tolist())).encode())
    info = {
        "format_version": FORMAT_VERSION,
        "fingerprint": digest.hexdigest(),
        "codec_name": "a test's codec",
        "codec_fingerprint": "0" * 64,
        "is_toy": False,
        "tokenizer_fingerprint": PhonemeTokenizer().fingerprint,
        "bos": False,
        "eos": False,
        "settings": {},
        "split": "given",
        "num_train": len(splits["train"]),
        "num_valid": len(splits["valid"]),
        "num_skipped": 0,
        "manifests": {name: sha256_of(folder / name) for name in MANIFESTS.values()},
    }
    write_info(folder, PreparedInfo(**info | changes))
    return folder


def _cut(folder: Path, utterance: Utterance) -> MonoCut:
    name = f"{utterance.id}.npy"
    np.save(folder / name, utterance.codes.numpy().astype(np.uint16))
    seconds = len(utterance.codes) / FRAME_RATE_HZ
    recording = make_recording(utterance.id, f"{utterance.id}.wav", 24000, round(seconds * 24000), 1, seconds)
    phonemes = list(utterance.phoneme_ids), list(utterance.languages)
    codes = codes_manifest(folder, name, utterance.codes.shape)
    return make_cut(recording, utterance.id.partition("_")[0], None, phonemes, codes)


def draw_utterances(name: str, num_frames: list[int], seed: int = 0, language: str = "en") -> list[Utterance]:
    """Utterances of these lengths, whose codes are few enough to be learned in a few steps."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Utterance(
            id=f"{name}_{number}",
            phoneme_ids=torch.randint(5, 70, (4 + number,), generator=generator).tolist(),
            languages=[language] * (4 + number),
            codes=torch.randint(0, 12, (frames, 8), generator=generator),
        )
        for number, frames in enumerate(num_frames)
    ]


@pytest.fixture(scope="session")
def make_prepared() -> Callable[..., Path]:
    return write_prepared


@pytest.fixture(scope="session")
def make_utterances() -> Callable[..., list[Utterance]]:
    return draw_utterances


@pytest.fixture(scope="session")
def tiny_prepared(tmp_path_factory) -> Path:
    """Seven clips of a third of a second to one second to train on, and three to validate."""
    splits = {
        "train": draw_utterances("anna", [24, 30, 36, 42, 48, 60, 75]),
        "valid": draw_utterances("dora", [9, 33, 50], seed=1),
    }
    return write_prepared(tmp_path_factory.mktemp("prepared") / "set", splits)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., VALLE]:
    """Builds a seeded random model of width 32; keywords are ModelConfig's."""

    def build(seed: int = 0, **settings) -> VALLE:
        config = {"d_model": 32, "num_heads": 2, "num_layers": 1, "num_text_tokens": 80}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return VALLE(ModelConfig(**config | settings)).eval()

    return build


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, make_model) -> Path:
    """A tiny random model on disk."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_model(make_model(), path)
    return path


def small_config(*, ar: dict | None = None, nar: dict | None = None, **settings) -> FinetuneConfig:
    """Six steps a stage in batches of a second, with all that is random; a validation every two steps.

    settings: those of a run, and of stages where both have one
    """
    stage = {
        "lr": 1e-3,
        "max_epochs": 1000,
        "max_steps": 6,
        "accumulate": 2,
        "dropout": 0.2,
        "warmup_steps": 2,
        "validate_every": 2,
        "max_batch_sec": 1.0,
    }
    stage |= {name: settings.pop(name) for name in [*settings] if name in StageConfig.__dataclass_fields__}
    common = {"num_buckets": 2, "log_every": 1}
    common |= {"evaluation": "none", "samples": 0, "trackers": "none"}
    return FinetuneConfig(
        ar=StageConfig(**stage | (ar or {})), nar=StageConfig(**stage | (nar or {})), **common | settings
    )


@pytest.fixture(scope="session")
def make_config() -> Callable[..., FinetuneConfig]:
    return small_config


@pytest.fixture(scope="session")
def make_spec(tiny_prepared, tiny_checkpoint) -> Callable[..., RunSpec]:
    """A run's spec on the tiny set and model; keywords are RunSpec's."""

    def make(runs_dir: Path, name: str = "run", **changes) -> RunSpec:
        spec = {
            "name": name,
            "runs_dir": runs_dir,
            "prepared": tiny_prepared,
            "init": tiny_checkpoint,
            "preset": "smoke",
            "config": small_config(),
        }
        return RunSpec(**spec | changes)

    return make


@pytest.fixture(scope="session")
def read_log() -> Callable[[Path], list[dict]]:
    """The lines of a run's metrics.jsonl, without what a clock says."""

    def read(run_dir: Path) -> list[dict]:
        lines = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]

    return read


@pytest.fixture(scope="session")
def read_weights() -> Callable[[Path], dict[str, torch.Tensor]]:
    """All weights of a checkpoint by name."""

    def read(path: Path) -> dict[str, torch.Tensor]:
        return load_model(path).state_dict()

    return read


@pytest.fixture(scope="session")
def assert_same_outcome(read_log, read_weights) -> Callable[[Path, Path], None]:
    """Two runs have the same log, the same figures and the same checkpoints, bit for bit."""

    def assert_same(run_dir: Path, other_dir: Path) -> None:
        assert read_log(run_dir) == read_log(other_dir)
        result, other = (read_result(folder) for folder in (run_dir, other_dir))
        assert [replace(p, seconds=0.0) for p in result.phases] == [
            replace(p, seconds=0.0) for p in other.phases
        ]
        assert (result.status, result.error) == (other.status, other.error)
        files, others = (
            sorted(file.relative_to(folder) for file in folder.rglob("*")) for folder in (run_dir, other_dir)
        )
        assert files == others
        for file in files:
            if file.suffix == ".safetensors":
                weights, other_weights = read_weights(run_dir / file), read_weights(other_dir / file)
                differing = [name for name in weights if not torch.equal(weights[name], other_weights[name])]
                assert not differing, file

    return assert_same


@pytest.fixture
def tiny_batch(make_utterances) -> Batch:
    """Two utterances of 20 and 31 frames."""
    return collate_utterances(make_utterances("anna", [20, 31]), TextCollator())
