"""Choosing parameters: anchored patterns, tied heads, named sets, rates, what autograd computes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from finetune.config import StageConfig
from finetune.freezing import (
    choose_parameters,
    describe_groups,
    freeze_all_but,
    named_sets,
    needs_untied_heads,
    optimizer_groups,
)
from finetune.model_setup import new_optimizer
from vallex.errors import ConfigError
from vallex.model.checkpoint import load_model, save_model
from vallex.model.prefix import NarPrefix


@pytest.fixture
def model(make_model):
    return make_model(num_layers=6)


def chosen_names(groups) -> set[str]:
    return {name for group in groups for own in group.names for name in own}


def num_parameters(groups) -> int:
    return sum(p.numel() for group in groups for p in group.parameters)


def test_choose_with_all_takes_every_parameter_of_the_stage_once(model):
    for stage in ("ar", "nar"):
        groups = choose_parameters(model, stage, "all")
        half = getattr(model, stage)
        constant = 2 if stage == "nar" else 0  # the two alphas of the NAR's positions
        assert num_parameters(groups) == sum(p.numel() for p in half.parameters()) - constant
        assert len(groups) == 1


def test_choose_with_a_pattern_matches_whole_names_only(model):
    names = chosen_names(choose_parameters(model, "nar", "nar.decoder.layers.1.*"))
    assert all(name.startswith("nar.decoder.layers.1.") for name in names)
    with pytest.raises(ConfigError, match=r"ar\.train has 'decoder\.layers\.1\.\*', which matches no name"):
        choose_parameters(model, "ar", "decoder.layers.1.*")


@pytest.mark.parametrize("pattern", ["nar.predict_layers.0.weight", "nar.audio_embeddings.2.weight"])
def test_choose_by_either_name_of_a_tied_head_is_the_one_parameter(model, pattern):
    (group,) = choose_parameters(model, "nar", pattern)
    assert group.parameters[0] is model.nar.predict_layers[0].weight
    assert set(group.names[0]) == {"nar.predict_layers.0.weight", "nar.audio_embeddings.2.weight"}
    table = "\n".join(describe_groups(model, "nar", [group], 1e-5))
    assert "tied, so that training the one trains the other: " in table
    assert "nar.audio_embeddings.2.weight = nar.predict_layers.0.weight" in table


def test_choose_heads_of_the_nar_says_that_six_are_embeddings(model):
    groups = choose_parameters(model, "nar", "heads")
    assert num_parameters(groups) == 7 * 1024 * 32
    (tied,) = [line for line in describe_groups(model, "nar", groups, 1e-3) if line.startswith("tied")]
    assert tied.endswith(
        ": nar.audio_embeddings.2.weight = nar.predict_layers.0.weight, "
        "… nar.audio_embeddings.7.weight = nar.predict_layers.5.weight (6 pairs)"
    )
    ar = choose_parameters(model, "ar", "heads")
    assert chosen_names(ar) == {"ar.predict_layer.weight"}


def test_choose_all_but_embeddings_leaves_tied_heads_frozen(model):
    names = chosen_names(choose_parameters(model, "nar", "all-but-embeddings"))
    assert not any("embedding" in name for name in names)
    assert [name for name in names if "predict" in name] == ["nar.predict_layers.6.weight"]
    assert "nar.decoder.norm.project_layer.weight" in names


@pytest.mark.parametrize("share_embedding", [True, False])
@pytest.mark.parametrize("stage", ["ar", "nar"])
@pytest.mark.parametrize("named", named_sets("ar", 12))
def test_choose_by_each_named_set_finds_something_in_each_stage(make_model, named, stage, share_embedding):
    model = make_model(num_layers=6, share_embedding=share_embedding)
    names = chosen_names(choose_parameters(model, stage, named))
    has_embeddings = any("embedding" in name for name in names)
    is_tied_head = stage == "nar" and share_embedding and named.startswith("heads")
    assert has_embeddings == (named == "all" or is_tied_head)
    is_whole = named in ("all", "all-but-embeddings")
    assert (f"{stage}.decoder.layers.0.linear1.weight" in names) == is_whole
    assert any(".predict_layer" in name for name in names) == (named != "last-4")


def test_choose_last_4_is_four_layers_and_the_norm_behind_them(model):
    names = chosen_names(choose_parameters(model, "ar", "last-4"))
    assert {name.split(".")[3] for name in names if ".layers." in name} == {"2", "3", "4", "5"}
    assert {name for name in names if ".layers." not in name} == {
        "ar.decoder.norm.weight",
        "ar.decoder.norm.bias",
    }


def test_choose_with_an_exclusion_takes_it_out_again(model):
    names = chosen_names(choose_parameters(model, "ar", "all, !*.norm?.*"))
    assert not any(".norm1." in name or ".norm2." in name for name in names)
    assert "ar.decoder.norm.weight" in names


def test_choose_of_nothing_or_what_is_not_there_names_every_fault(model):
    with pytest.raises(
        ConfigError, match=r"'nar.predict_layer.weight', which.*Nearest: nar\.predict_layers\.\d\.weight"
    ):
        choose_parameters(model, "nar", "nar.predict_layer.weight")
    with pytest.raises(ConfigError, match=r"'last4', which .* Nearest: last-4.*'!nope\*', which"):
        choose_parameters(model, "ar", "last4, all, !nope*")
    with pytest.raises(ConfigError, match=r"ar\.train is 'all, !\*': nothing is left to train"):
        choose_parameters(model, "ar", "all, !*")
    with pytest.raises(ConfigError, match=r"nar\.text_position\.alpha'.*constants for alphas, never trained"):
        choose_parameters(model, "nar", "nar.text_position.alpha")


def test_choose_of_the_ar_may_train_its_alphas(model):
    assert chosen_names(choose_parameters(model, "ar", "*_position.alpha")) == {
        "ar.text_position.alpha",
        "ar.audio_position.alpha",
    }


def test_lr_factors_apply_the_first_that_matches_to_parameters_by_identity(model):
    groups = choose_parameters(model, "nar", "all", "nar.predict_layers.*=0.5, *embedding*=0.1")
    factor = {name: group.lr_factor for group in groups for own in group.names for name in own}
    assert factor["nar.audio_embeddings.2.weight"] == 0.5  # it is the first head
    assert factor["nar.audio_embeddings.0.weight"] == 0.1
    assert factor["nar.decoder.layers.0.linear1.weight"] == 1.0
    rates = {group["lr"] for group in optimizer_groups(groups, 1e-3, 0.01)}
    assert rates == {1e-3, 5e-4, 1e-4}
    assert any(
        line.split() == ["all", "7", "229,376", "0.0005"]
        for line in describe_groups(model, "nar", groups, 1e-3)
    )


def test_lr_factors_that_are_wrong_are_named(model):
    for text, message in (
        ("*embedding*", r"'\*embedding\*'; write pattern=factor"),
        ("*=0", r"'\*=0'; write pattern=factor with a factor above 0"),
        ("*=inf", "factor above 0"),
        ("ar.decoder.*=0.1", r"'ar\.decoder\.\*', which matches no name of what is trained"),
    ):
        with pytest.raises(ConfigError, match=message):
            choose_parameters(model, "ar", "heads", text)


def test_optimizer_groups_decay_matrices_and_nothing_else(model):
    groups = optimizer_groups(choose_parameters(model, "ar", "all"), 1e-3, 0.2)
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] == 0.2) for p in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(model.ar.parameters()))


@pytest.mark.parametrize("name", ["scaled-adam", "eve"])
def test_new_optimizer_when_vectors_are_as_matrices_has_all_tensors_of_a_rate_in_one_group(model, name):
    settings = StageConfig(optimizer=name, lr=0.01, train="heads, all", lr_factors="*embedding*=0.5")
    groups = choose_parameters(model, "ar", settings.train, settings.lr_factors)
    assert len(groups) == 3
    made = new_optimizer(settings, groups).param_groups
    assert [group["lr"] for group in made] == [0.005, 0.01]
    assert sum(len(group["params"]) for group in made) == len(list(model.ar.parameters()))
    assert {p.ndim for p in made[1]["params"]} == {1, 2}
    if name == "eve":
        assert [group["weight_decay"] for group in made] == [0.001, 0.001]


def test_new_optimizer_when_adamw_decays_matrices_alone(model):
    groups = choose_parameters(model, "ar", "all")
    decayed, exempt = new_optimizer(StageConfig(), groups).param_groups
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.01, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in exempt["params"])


def test_untie_heads_keeps_what_the_network_computes_and_is_not_for_the_original(model, tmp_path, tiny_batch):
    before = model(tiny_batch, 3, prefix=NarPrefix(mode=0)).loss
    model.untie_heads()
    assert torch.equal(model(tiny_batch, 3, prefix=NarPrefix(mode=0)).loss, before)
    assert needs_untied_heads("nar", "heads-untied") and not needs_untied_heads("ar", "heads-untied")
    groups = choose_parameters(model, "nar", "heads-untied")
    assert not any(line.startswith("tied") for line in describe_groups(model, "nar", groups, 1e-3))
    with torch.no_grad():
        model.nar.predict_layers[0].weight.add_(1.0)
    save_model(model, tmp_path / "untied.safetensors")
    loaded = load_model(tmp_path / "untied.safetensors")
    assert not loaded.config.share_embedding
    assert torch.equal(loaded.nar.audio_embeddings[2].weight + 1.0, loaded.nar.predict_layers[0].weight)


def backward_flops(model, batch, stage: str, train: str) -> int:
    freeze_all_but(model, choose_parameters(model, stage, train))
    model.zero_grad(set_to_none=True)
    loss = model(batch, 0 if stage == "ar" else 7, prefix=NarPrefix(mode=0)).loss
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert any(p.grad is not None for p in model.parameters())
    return counter.get_total_flops()


def test_frozen_sets_compute_no_gradient_that_nobody_uses(model, tiny_batch):
    num_texts, num_frames = tiny_batch.codes.shape[:2]
    model.train()
    # of a head alone: its weight's gradient, and not that of what goes into it
    assert backward_flops(model, tiny_batch, "ar", "heads") == 2 * num_texts * (num_frames + 1) * 32 * 1025
    full, last_4 = (backward_flops(model, tiny_batch, "ar", train) for train in ("all", "last-4"))
    assert last_4 < 0.75 * full
    model.untie_heads()
    assert backward_flops(model, tiny_batch, "nar", "heads-untied") == 2 * num_texts * num_frames * 32 * 1024


def test_named_sets_stand_in_the_documentation_of_the_setting():
    assert set(named_sets("ar", 12)) == {"all", "heads", "heads-untied", "last-4", "all-but-embeddings"}
