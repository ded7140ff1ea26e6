"""The model's configuration: what it refuses, and its JSON."""

import pytest

from vallex.errors import CheckpointError
from vallex.model.config import ModelConfig

CONFIG = {"d_model": 32, "num_heads": 2, "num_layers": 1}
WRONG_CONFIGS = {
    "width": ({"d_model": 0}, r"d_model is 0, it must be a whole number in 1\.\.16384"),
    "float width": ({"d_model": 32.5}, r"d_model is 32\.5"),
    "layers": ({"num_layers": 10**9}, r"num_layers is 1000000000, .* 1\.\.256"),
    "codebooks": ({"num_quantizers": 10**9}, r"num_quantizers is 1000000000, .* 1\.\.64"),
    "phonemes": ({"num_text_tokens": 10**18}, "num_text_tokens is 1000000000000000000"),
    "heads": ({"num_heads": 3}, "num_heads is 3, it must divide the width 32"),
    "odd heads": ({"num_heads": 32}, "num_heads is 32, it must divide the width 32 into even parts"),
    "mode": ({"prefix_mode": 3}, "prefix_mode is 3, it must be one of 0, 1, 2, 4"),
    "share": ({"prefix_min_share": 0.6}, r"prefix_min_share is 0\.6, it must lie in 0\.\.0\.5"),
    "dropout": ({"dropout": 1.0}, r"dropout is 1\.0, it must be at least 0 and below 1"),
    "no languages": ({"languages": ()}, r"languages are \(\), they must be different names"),
    "same languages": ({"languages": ("en", "en")}, "they must be different names"),
}


@pytest.mark.parametrize("name", WRONG_CONFIGS)
def test_model_config_of_a_wrong_value_names_it(name):
    settings, message = WRONG_CONFIGS[name]
    with pytest.raises(CheckpointError, match=message):
        ModelConfig(**(CONFIG | settings))


def test_model_config_gives_all_faults_at_once():
    with pytest.raises(
        CheckpointError, match=r"d_model is 0.*num_layers is -1.*prefix_mode is 7.*dropout is 2"
    ):
        ModelConfig(d_model=0, num_heads=2, num_layers=-1, prefix_mode=7, dropout=2)


def test_model_config_to_json_and_back_is_the_same():
    config = ModelConfig(**CONFIG, languages=("en", "ar"), prefix_min_share=0.25, text_bos=True)
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("7", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read.*languages"),
        ('{"languages": 3}', "cannot be read"),
        ('{"languages": [[]], "d_model": 32, "num_heads": 2, "num_layers": 1}', "cannot be read"),
        ('{"languages": ["en"], "d_model": 32}', "cannot be read.*num_heads"),
        ('{"languages": ["en"], "dropout": "much"}', "cannot be read"),
        ('{"languages": ["en"], "rotary": true}', "unknown entries rotary.*newer vallex"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_model_config_from_json_that_is_not_one_says_so(text, message):
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_json(text)
