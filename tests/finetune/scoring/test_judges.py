"""Judges from their true formats with random weights, and gaps where one is missing or broken."""

import sys

import pytest
import torch

from finetune.scoring import judges
from finetune.scoring.hearing import hear_all
from finetune.scoring.judges import JUDGE_RATE_HZ, UTMOS_FILE, find_judges, to_judge_rate


@pytest.fixture
def noise() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, generator=generator) * 0.1 for length in (16000, 24000)]


@pytest.fixture
def no_packages(monkeypatch):
    """As where nothing but vallex is installed."""
    for name in ("pocketsphinx", "resemblyzer", "speechmos", "speechmos.dnsmos"):
        monkeypatch.setitem(sys.modules, name, None)
    judges.import_quietly.cache_clear()
    yield
    judges.import_quietly.cache_clear()


@pytest.fixture(scope="module")
def wavlm_folder(tmp_path_factory):
    """A folder of weights with a WavLM of the hub's format: 32 wide, one layer, random."""
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    checkpoints = tmp_path_factory.mktemp("checkpoints")
    folder = checkpoints / "wavlm-base-plus-sv"
    config = WavLMConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16, 16),
        conv_stride=(5, 64),
        conv_kernel=(10, 64),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        tdnn_dim=(16, 16, 16, 16, 32),
        xvector_output_dim=16,
        num_feat_extract_layers=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WavLMForXVector(config)
    config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return checkpoints


class Louder(torch.nn.Module):
    """Rates 16-bit samples as UTMOS's file does: [B, N] int16 to [B]."""

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return 1.0 + 4.0 * (samples.float() / 32767.0).abs().mean(dim=1)


def test_find_judges_when_nothing_is_installed_then_all_are_gaps(tmp_path, no_packages, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    found = find_judges(["en", "zh"], tmp_path)
    assert found.names() == {"error_rate": None, "similarity": None, "naturalness": None}
    assert found.gaps["similarity"] == "resemblyzer is not installed (pip install 'vallex[judges]')"
    assert found.gaps["naturalness"].endswith("is not installed (pip install 'vallex[judges]')")
    assert "pocketsphinx is not installed" in found.gaps["error_rate (en)"]
    assert "pocketsphinx hears English only, not 'zh'" in found.gaps["error_rate (zh)"]


def test_find_judges_when_one_is_broken_then_it_is_a_gap_with_its_reason(tmp_path, monkeypatch):
    def broken():
        raise RuntimeError("bad\nweights")

    monkeypatch.setattr(judges, "ResemblyzerSpeaker", broken)
    monkeypatch.setattr(judges, "Dnsmos", broken)
    found = find_judges([], tmp_path)
    assert found.gaps["similarity"] == "the judge cannot be loaded (RuntimeError: bad weights)"
    assert found.speaker is found.naturalness is None


def test_whisper_where_its_weights_are_hears_every_language_in_batches(whisper_checkpoints, noise):
    found = find_judges(["en", "ja", "ko"], whisper_checkpoints)
    assert found.names()["error_rate"] == "whisper-tiny-random"
    assert found.recognizers["en"] is found.recognizers["ja"]
    assert found.gaps["error_rate (ko)"] == "whisper-tiny-random does not hear it"
    many = [*noise, *noise, *noise, *noise, *noise]  # more than a batch
    heard = hear_all(found.recognizers["ja"], many, "ja")
    assert len(heard) == len(many) and heard[:2] == heard[-2:]


def test_wavlm_where_its_weights_are_is_the_speaker_judge(wavlm_folder, noise):
    found = find_judges([], wavlm_folder)
    assert found.speaker.name == "wavlm-base-plus-sv"
    vectors = found.speaker.embed([*noise, torch.zeros(100)])
    assert vectors.shape == (3, 16)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found.speaker.embed(noise[1:])[0], vectors[1])


def test_wavlm_of_which_half_is_missing_is_a_gap(wavlm_folder, tmp_path):
    folder = tmp_path / "wavlm-base-plus-sv"
    folder.mkdir()
    for file in (wavlm_folder / "wavlm-base-plus-sv").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    state = torch.load(folder / "pytorch_model.bin")
    del state["projector.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    found = find_judges([], tmp_path)
    assert "wavlm-base-plus-sv: lacks 1 tensors (projector.weight" in found.gaps["similarity"]
    assert found.speaker is None


def test_utmos_where_its_file_is_rates_naturalness(tmp_path, noise):
    (tmp_path / UTMOS_FILE).parent.mkdir()
    torch.jit.script(Louder()).save(str(tmp_path / UTMOS_FILE))
    found = find_judges([], tmp_path)
    assert found.names()["naturalness"] == "UTMOS"
    expected = [1 + 4 * float(wav.abs().mean()) for wav in noise]
    assert found.naturalness.rate(noise) == pytest.approx(expected, abs=1e-3)


def test_utmos_that_rates_beyond_1_to_5_is_a_gap(tmp_path):
    class Other(torch.nn.Module):
        def forward(self, samples: torch.Tensor) -> torch.Tensor:
            return samples.float().mean(dim=1) + 80.0

    (tmp_path / UTMOS_FILE).parent.mkdir()
    torch.jit.script(Other()).save(str(tmp_path / UTMOS_FILE))
    assert "it rates silence 80, where 1 to 5 is possible" in find_judges([], tmp_path).gaps["naturalness"]


def test_to_judge_rate_gives_16_khz_within_one(noise):
    wav = to_judge_rate(20 * noise[1], 24000)
    assert len(wav) == JUDGE_RATE_HZ and wav.abs().max() <= 1
