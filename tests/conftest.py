"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest

# read when torch is first imported: threads that spin while they wait take the cores from all other work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data beside the repository; tests that need it skip, saying so, where it is absent."""
    path = Path(__file__).resolve().parents[1] / "../shared"
    if not path.is_dir():
        pytest.skip("no ../shared beside the repository: reference values are not there")
    return path.resolve()


@pytest.fixture(scope="module")
def one_thread():
    """Tensors this small are computed several times faster by one thread than by waiting for two."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def whisper_checkpoints(tmp_path_factory) -> Path:
    """A folder with `whisper-tiny-random`: 32 wide, one layer, random, with a byte tokenizer."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    folder = tmp_path_factory.mktemp("checkpoints")
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|ja|>", "<|de|>"]
    special += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    special += ["<|notimestamps|>"]
    letters = {symbol: place for place, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    ids = {token: len(letters) + place for place, token in enumerate(special)}
    tokenizer = WhisperTokenizer(vocab=letters | {special[0]: ids[special[0]]}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    assert tokenizer.convert_tokens_to_ids(special) == list(ids.values())
    config = WhisperConfig(
        vocab_size=len(letters) + len(special),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_target_positions=24,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        pad_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WhisperForConditionalGeneration(config)
    generation = model.generation_config
    generation.lang_to_id = {code: ids[code] for code in ("<|en|>", "<|zh|>", "<|ja|>", "<|de|>")}
    generation.task_to_id = {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]}
    generation.no_timestamps_token_id = ids["<|notimestamps|>"]
    generation.is_multilingual = True
    generation.max_length = 16
    generation._from_model_config = False  # what is set here comes back
    for part in (model, WhisperFeatureExtractor(), tokenizer):
        part.save_pretrained(folder / "whisper-tiny-random")
    return folder
