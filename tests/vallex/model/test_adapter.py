"""Adapters: peft's own format, exact off, scaled, merged, refused on another base, and small."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from safetensors.torch import load_file

from vallex.errors import CheckpointError, ConfigError
from vallex.model.adapted_linear import AdaptedLinear
from vallex.model.adapter import (
    AdapterSettings,
    add_adapter,
    attach_adapter,
    fingerprint_of,
    has_adapter,
    load_adapted,
    merge_adapter,
    read_adapter,
    save_adapter,
    set_adapter_scale,
)
from vallex.model.checkpoint import load_model, save_model
from vallex.model.config import ModelConfig
from vallex.model.network import VALLE
from vallex.model.precision import Int8Linear, to_precision
from vallex.model.runs import ADAPTER_FILE
from vallex.model.toy import toy_model


@pytest.fixture(autouse=True)
def seeded():
    """Adapters begin with drawn weights."""
    torch.manual_seed(0)


def build(seed: int = 0, **changes) -> VALLE:
    settings = {"d_model": 32, "num_heads": 2, "num_layers": 2, "num_text_tokens": 80} | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VALLE(ModelConfig(**settings)).eval()


def train_a_bit(model: VALLE) -> None:
    """Gives an adapter weights that do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


def batch() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(5, 70, (2, 9), generator=generator)
    codes = torch.randint(0, 1024, (2, 20, 8), generator=generator)
    return text, torch.tensor([9, 7]), codes, torch.tensor([20, 15]), torch.tensor([0, 1])


def losses(model: VALLE) -> list[float]:
    with torch.inference_mode():
        return [
            model.ar_loss(*batch()).loss.item(),
            model.nar_loss(*batch(), stage=3, prefix_len=4).loss.item(),
        ]


@pytest.fixture
def base_file(tmp_path):
    save_model(build(), tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


@pytest.fixture
def adapted(base_file):
    """A model with an adapter on its AR half that does something, and the record of its base."""
    model = load_model(base_file)
    base = {"path": str(base_file), "fingerprint": fingerprint_of(model)}
    add_adapter(model, "ar", AdapterSettings(rank=4, alpha=8.0))
    train_a_bit(model)
    return model, base


@pytest.fixture
def adapter_file(adapted, tmp_path):
    model, base = adapted
    save_adapter(model, tmp_path / "run" / ADAPTER_FILE, base=base)
    return tmp_path / "run" / ADAPTER_FILE


def test_adapter_when_new_computes_what_the_base_does_and_trains_alone(base_file):
    model, base = load_model(base_file), load_model(base_file)
    for stage in ("ar", "nar"):
        model = load_model(base_file)
        add_adapter(model, stage, AdapterSettings(rank=4, alpha=8.0, targets=("in_proj", "linear2")))
        assert losses(model) == losses(base)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        assert len(trained) == 2 * 2 * 2  # layers, targets, A and B
        assert all(name.startswith(f"{stage}.decoder.layers.") and ".lora_" in name for name in trained)


def adapter_gradients(model: VALLE, layer: type, *, autocast: bool) -> torch.Tensor:
    """Of all adapter weights, in a row, where the adapted layers are of this class."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.__class__ = layer
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model.ar_loss(*batch()).loss
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def test_adapter_when_trained_then_has_the_gradients_of_peft_itself(adapted):
    model, _ = adapted
    model.train()
    model.set_dropout(0.0)
    exact = adapter_gradients(model, Linear, autocast=False)
    torch.testing.assert_close(adapter_gradients(model, AdaptedLinear, autocast=False), exact)
    errors = [
        (adapter_gradients(model, layer, autocast=True) - exact).norm() for layer in (AdaptedLinear, Linear)
    ]
    assert errors[0] < 1.2 * errors[1]


def test_adapter_never_sits_on_a_head_or_an_embedding(base_file):
    model = load_model(base_file)
    add_adapter(model, "nar", AdapterSettings(rank=2, alpha=2.0))
    assert not any(".lora_" in name for name, _ in model.named_parameters() if ".decoder.layers." not in name)
    assert model.nar.predict_layers[0].weight is model.nar.audio_embeddings[2].weight


def test_adapter_saved_alone_is_small_and_loads_merged(adapted, adapter_file, base_file):
    model, _ = adapted
    assert adapter_file.stat().st_size < 0.1 * base_file.stat().st_size
    for path in (adapter_file, adapter_file.parent):
        merged = load_model(path)
        assert not has_adapter(merged)
        assert merged.state_dict().keys() == build().state_dict().keys()
        assert losses(merged) == pytest.approx(losses(model), rel=1e-5)
    assert losses(merged)[0] != pytest.approx(losses(build())[0], rel=1e-3)
    assert losses(merged)[1] == losses(build())[1]


def test_adapter_folder_is_what_peft_itself_reads(adapted, adapter_file, base_file):
    model, _ = adapted
    by_peft = PeftModel.from_pretrained(load_model(base_file), adapter_file.parent)
    assert losses(by_peft.base_model.model) == losses(model)
    assert all(name.startswith("base_model.model.ar.") for name in load_file(adapter_file))


def test_adapter_scaled_to_nothing_is_the_base_exactly_and_scales_between(adapted, adapter_file, base_file):
    model = load_model(base_file)
    attach_adapter(model, read_adapter(adapter_file))
    full = losses(model)
    set_adapter_scale(model, 0.0)
    assert losses(model) == losses(load_model(base_file))
    set_adapter_scale(model, 0.7)
    part = losses(model)
    assert part == pytest.approx(losses(load_adapted(adapter_file, scale=0.7)), rel=1e-5)
    assert part[0] != full[0]
    set_adapter_scale(model, 1.0)
    assert losses(model) == full == losses(adapted[0])
    with pytest.raises(CheckpointError, match="adapter scale is nan; it must be a finite number"):
        set_adapter_scale(model, float("nan"))


def test_adapter_on_another_base_is_refused(adapter_file, tmp_path):
    save_model(build(seed=1), tmp_path / "other.safetensors")
    with pytest.raises(
        CheckpointError, match=r"was trained on other weights than these: on .*base\.safetensors"
    ):
        load_adapted(adapter_file, base=tmp_path / "other.safetensors")
    save_model(build(), tmp_path / "copy.pt", format="released", force=True)
    # the same weights in another file are the same base
    merged = load_adapted(adapter_file, base=tmp_path / "copy.pt", num_heads=2)
    assert losses(merged) == losses(load_model(adapter_file))


def test_adapter_whose_base_is_gone_says_where_it_was(adapter_file, base_file):
    base_file.unlink()
    with pytest.raises(CheckpointError, match=r"its base model .*base\.safetensors is not there"):
        load_model(adapter_file)


def test_adapter_beside_a_relative_base_moves_with_its_folder(adapted, base_file, tmp_path):
    model, base = adapted
    save_adapter(model, tmp_path / "a" / ADAPTER_FILE, base={**base, "path": "../base.safetensors"})
    before = losses(load_model(tmp_path / "a"))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "a").rename(moved / "a")
    base_file.rename(moved / "base.safetensors")
    assert losses(load_model(moved / "a")) == before


def test_adapters_of_both_halves_share_a_file_though_their_ranks_differ(
    adapted, adapter_file, base_file, tmp_path
):
    ar_model, base = adapted
    nar_model = load_model(base_file)
    add_adapter(nar_model, "nar", AdapterSettings(rank=2, alpha=6.0, targets=("linear1",)))
    train_a_bit(nar_model)
    save_adapter(nar_model, tmp_path / "both" / ADAPTER_FILE, base=base, beside=read_adapter(adapter_file))
    both = losses(load_model(tmp_path / "both"))
    assert both == pytest.approx([losses(ar_model)[0], losses(nar_model)[1]], rel=1e-5)
    assert both[1] != pytest.approx(losses(build())[1], rel=1e-3)


def test_adapter_on_the_toy_model_finds_it_again(tmp_path):
    model = toy_model()
    base = {"path": None, "fingerprint": fingerprint_of(model)}
    add_adapter(model, "nar", AdapterSettings(rank=1, alpha=1.0))
    train_a_bit(model)
    save_adapter(model, tmp_path / ADAPTER_FILE, base=base)
    loaded = load_model(tmp_path)
    assert losses(loaded) == pytest.approx(losses(model), rel=1e-5)
    assert loaded.provenance["toy"]


def test_adapter_records_the_collation_that_it_was_trained_with(adapted, tmp_path, base_file):
    model, base = adapted
    model.config = replace(model.config, text_bos=True)
    save_adapter(model, tmp_path / "bos" / ADAPTER_FILE, base=base)
    assert load_model(tmp_path / "bos").config.text_bos
    assert not load_model(base_file).config.text_bos


def test_fingerprint_is_of_the_base_whatever_is_on_it(adapted):
    model, base = adapted
    assert fingerprint_of(model) == base["fingerprint"]
    merge_adapter(model)
    assert fingerprint_of(model) != base["fingerprint"]


def test_model_with_an_adapter_on_is_not_saved_as_a_whole(adapted, tmp_path):
    model, _ = adapted
    with pytest.raises(CheckpointError, match="has an adapter on it: merge it first"):
        save_model(model, tmp_path / "wrong.safetensors")
    assert not (tmp_path / "wrong.safetensors").exists()


def test_adapter_settings_out_of_range_are_all_named():
    with pytest.raises(
        CheckpointError, match=r"rank is 0.*dropout is 1\.5.*targets are head, there are in_proj"
    ):
        AdapterSettings(rank=0, alpha=1.0, dropout=1.5, targets=("head",))


def test_adapter_that_is_none_or_damaged_is_one_line(adapter_file, tmp_path):
    config = adapter_file.parent / "adapter_config.json"
    with pytest.raises(
        CheckpointError, match=r"not an adapter: no adapter_model\.safetensors and no adapter_con"
    ):
        read_adapter(tmp_path)
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"peft_type": "IA3"}))
    with pytest.raises(CheckpointError, match="of kind IA3; only LORA is known"):
        load_model(adapter_file)
    config.write_text(json.dumps(content | {"target_modules": ["nar.decoder.layers.0.linear1"]}))
    with pytest.raises(
        CheckpointError, match=r"does not fit its own adapter_config\.json: 2 tensors missing, 16"
    ):
        load_model(adapter_file)
    config.write_text(json.dumps(content | {"r": 3}))
    with pytest.raises(CheckpointError, match=r"does not fit the model: .*size mismatch"):
        load_model(adapter_file)
    config.write_text("{")
    with pytest.raises(CheckpointError, match="not a whole adapter"):
        load_model(adapter_file)
    config.write_text(json.dumps(content))
    adapter_file.write_bytes(adapter_file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a whole adapter"):
        load_model(adapter_file)


def test_to_precision_when_an_adapter_is_not_merged_then_is_refused():
    model = build()
    add_adapter(model, "ar", AdapterSettings(rank=2, alpha=4.0))
    with pytest.raises(ConfigError, match=r"an adapter is on this model; merge it .* before int8"):
        to_precision(model, "int8")
    merge_adapter(model)
    assert isinstance(to_precision(model, "int8").ar.decoder.layers[0].linear1, Int8Linear)
