"""Loading and saving: names on disk, both formats and back, run folders, errors that explain themselves."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import vallex
from vallex.errors import CheckpointError
from vallex.model.checkpoint import (
    explain_difference,
    from_released_name,
    released_obstacles,
    save_model,
    to_released_name,
)
from vallex.model.config import ModelConfig
from vallex.model.network import VALLE

RELEASED = ModelConfig(d_model=1024, num_heads=16, num_layers=12)


def meta_model(**settings) -> VALLE:
    with torch.device("meta"):
        return VALLE(replace(RELEASED, **settings))


def released_file(model: VALLE, path, **extras):
    """What the original trainer would have written of a small model."""
    tensors = {to_released_name(name): tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": tensors, "nhead": model.config.num_heads} | extras, path)
    return path


def edited(path, change):
    """The released file at path with its model's tensors changed in place."""
    content = torch.load(path, weights_only=True)
    change(content["model"])
    torch.save(content, path)
    return path


def assert_same_weights(one: VALLE, other: VALLE):
    expected, found = one.state_dict(), other.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
        assert tensor.dtype == found[name].dtype


def test_names_on_disk_of_the_full_size_are_the_released_ones(shared):
    expected = json.loads((shared / "reference" / "released_keys.json").read_text())
    model = meta_model()
    found = {to_released_name(name): list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == expected
    # on disk a tied head stands beside its embedding; here they are one parameter
    assert sum(parameter.numel() for parameter in model.parameters()) == 370_539_524


@pytest.mark.parametrize(
    "settings", [{}, {"add_prenet": True}, {"share_embedding": False}, {"num_quantizers": 1}]
)
def test_names_on_disk_and_inside_are_each_others_inverse(settings):
    names = list(meta_model(**settings).state_dict())
    on_disk = [to_released_name(name) for name in names]
    assert [from_released_name(name) for name in on_disk] == names
    assert len(set(on_disk)) == len(names)
    assert not any(name.startswith(("ar.", "nar.")) or ".in_proj." in name for name in on_disk)


def test_names_of_prenets_are_those_of_the_original(shared):
    original = torch.load(shared / "reference" / "random_prenet.pt", weights_only=True)["model"]
    model = vallex.load_model(shared / "reference" / "random_prenet.pt")
    assert {to_released_name(name) for name in model.state_dict()} == set(original)
    assert model.config.add_prenet


@pytest.mark.parametrize("name", ["with_training_objects.pt", "with_module_prefix.pt", "random_plain.pt"])
def test_load_model_of_the_released_format_as_it_is_met(shared, name):
    model = vallex.load_model(shared / "reference" / name)
    assert (model.config.d_model, model.config.num_heads, model.config.num_layers) == (32, 4, 1)
    assert model.config.share_embedding
    assert model.config.prepend_bos
    assert not model.config.add_prenet
    assert not model.training
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert model.nar.predict_layers[0].weight is model.nar.audio_embeddings[2].weight
    assert all(p.requires_grad for n, p in model.named_parameters() if "nar." not in n or "alpha" not in n)


def test_load_model_takes_a_string_and_gives_a_model_that_trains(shared, make_batch):
    model = vallex.load_model(str(shared / "reference" / "random_plain.pt"))
    model.ar_loss(**make_batch([(4, 6)])).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    again = vallex.load_model(str(shared / "reference" / "random_plain.pt"))
    assert not torch.equal(model.ar.predict_layer.weight, again.ar.predict_layer.weight)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"share_embedding": False},
        {"add_prenet": True},
        {"num_quantizers": 1},
        {"num_quantizers": 4, "prepend_bos": False},
        {"text_bos": True, "text_eos": True, "prefix_mode": 4, "prefix_min_share": 0.25, "dropout": 0.3},
        {"languages": ("en", "zh", "ja", "ar"), "prefix_mode": 0},
    ],
)
def test_safetensors_written_and_read_is_the_same_model(build_model, tmp_path, settings):
    model = build_model(**settings)
    model.provenance = {"codec": "toy", "run": {"name": "a", "steps": 30}}
    assert save_model(model, tmp_path / "m.safetensors") == []
    loaded = vallex.load_model(tmp_path / "m.safetensors")
    assert loaded.config == model.config
    assert loaded.provenance == model.provenance
    assert_same_weights(model, loaded)
    tied = (
        loaded.nar is not None
        and loaded.nar.predict_layers[0].weight is loaded.nar.audio_embeddings[2].weight
    )
    assert tied == (loaded.nar is not None and model.config.share_embedding)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert all(re.match(r"n?ar_", name) for name in file.keys())  # noqa: SIM118 (not a dict)


def test_safetensors_of_a_tied_model_with_other_heads_is_refused(build_model, tmp_path):
    model = build_model(share_embedding=False)
    model.config = replace(model.config, share_embedding=True)
    save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"m.safetensors: .*tied heads, but they differ"):
        vallex.load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize("format", ["safetensors", "released"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_export_loads_back_in_float32(build_model, tmp_path, format, dtype):
    model, path = build_model(add_prenet=True), tmp_path / f"m.{format}"
    path = path.with_suffix(".safetensors" if format == "safetensors" else ".pt")
    save_model(model, path, format=format, dtype=dtype, force=True)
    save_model(model, tmp_path / f"full{path.suffix}", format=format, force=True)
    assert path.stat().st_size < 0.75 * (tmp_path / f"full{path.suffix}").stat().st_size
    loaded = vallex.load_model(path)
    for (name, exact), near in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert near.dtype == exact.dtype
        if exact.is_floating_point():
            torch.testing.assert_close(near, exact.to(getattr(torch, dtype)).float(), rtol=0, atol=0)
        else:
            assert torch.equal(near, exact), name
    assert loaded.config.share_embedding


OBSTACLES = {
    "untied": ({"share_embedding": False}, "NAR heads are untied"),
    "prenet": ({"add_prenet": True}, "it has a prenet"),
    "languages": ({"languages": ("en", "zh", "ja", "ar")}, "it has languages en, zh, ja, ar"),
    "text bos": ({"text_bos": True}, "BOS or EOS around the text"),
    "text eos": ({"text_eos": True}, "BOS or EOS around the text"),
    "mode 0": ({"prefix_mode": 0}, "its prefix mode is 0, the original decodes in mode 1"),
    "mode 4": ({"prefix_mode": 4}, "its prefix mode is 4"),
    "audio bos": ({"prepend_bos": False}, "it has no audio BOS"),
    "width": ({"d_model": 512}, r"d_model 512 \(not 1024\)"),
    "heads": ({"num_heads": 8}, r"num_heads 8 \(not 16\)"),
    "layers": ({"num_layers": 6}, r"num_layers 6 \(not 12\)"),
    "codebooks": ({"num_quantizers": 4}, r"num_quantizers 4 \(not 8\)"),
    "phonemes": ({"num_text_tokens": 100}, r"num_text_tokens 100 \(not 2048\)"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_released_export_of_what_the_original_loads_wrongly_says_why(name, tmp_path):
    settings, reason = OBSTACLES[name]
    model = meta_model(**settings)
    obstacles = released_obstacles(model)
    assert len(obstacles) == 1
    assert re.search(reason, obstacles[0])
    with pytest.raises(CheckpointError, match=rf"m\.pt: the original code would .*{reason}.*--force"):
        save_model(model, tmp_path / "m.pt", format="released")
    assert list(tmp_path.iterdir()) == []


def test_released_export_of_the_full_size_has_no_obstacle():
    assert released_obstacles(meta_model()) == []


def test_released_export_gives_all_reasons_at_once(build_model, tmp_path):
    model = build_model(share_embedding=False, prefix_mode=2)
    with pytest.raises(CheckpointError, match=r"untied.*; its prefix mode is 2.*; its sizes are others.*32"):
        save_model(model, tmp_path / "m.pt", format="released")


@pytest.mark.parametrize("source", ["tiny_released.pt", "with_module_prefix.pt"])
def test_released_export_with_force_has_the_released_keys_only(shared, tmp_path, source):
    model = vallex.load_model(shared / "reference" / source)
    reasons = save_model(model, tmp_path / "m.pt", format="released", force=True)
    assert len(reasons) == 1
    assert "its sizes are others" in reasons[0]
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    original = torch.load(shared / "reference" / source, weights_only=True)["model"]
    assert set(content["model"]) == {name.removeprefix("module.") for name in original}
    for name, tensor in original.items():
        assert torch.equal(content["model"][name.removeprefix("module.")], tensor), name
    again = vallex.load_model(tmp_path / "m.pt")
    assert_same_weights(model, again)
    assert again.config == model.config


def test_released_export_after_training_gives_the_trained_weights(build_model, make_batch, tmp_path):
    model = build_model(num_layers=1).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.nar_loss(**make_batch([(4, 9)]), stage=1, prefix_mode=0).loss.backward()
    optimizer.step()
    save_model(model, tmp_path / "m.pt", format="released", force=True)
    loaded = vallex.load_model(tmp_path / "m.pt")
    assert_same_weights(model, loaded)
    assert loaded.config.share_embedding


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "onnx"}, "^format 'onnx' is not known; it must be one of safetensors, released"),
        ({"dtype": "int8"}, "^dtype 'int8' is not known; it must be one of float32, float16, bfloat16"),
    ],
)
def test_save_model_of_an_unknown_format_or_dtype_names_it(build_model, tmp_path, settings, message):
    with pytest.raises(CheckpointError, match=message):
        save_model(build_model(num_layers=1), tmp_path / "m.safetensors", **settings)
    assert list(tmp_path.iterdir()) == []


def test_explain_difference_folds_layers_and_groups_faults():
    shape = torch.zeros(2, 3)
    expected = {f"ar_decoder.layers.{i}.norm1.bias": shape for i in range(3)} | {"a": shape, "b": shape}
    found = {"a": torch.zeros(3, 2), "b": shape, "c": shape}
    assert explain_difference(expected, found) == (
        "3 missing: ar_decoder.layers.{0,1,2}.norm1.bias; 1 unexpected: c; "
        "1 of another shape: a [3, 2] for [2, 3]"
    )
    assert explain_difference(expected, expected) == ""


def drop(tensors):
    del tensors["nar_predict_layers.3.weight"], tensors["ar_decoder.layers.0.norm1.bias"]


def reshape(tensors):
    tensors["ar_predict_layer.weight"] = torch.zeros(1025, 31)


def prenet(tensors):
    tensors["ar_text_prenet.14.bias"] = torch.zeros(32)


def rename(tensors):
    tensors["decoder.weight"] = tensors.pop("ar_decoder.norm.weight")


UNFIT = {
    "missing": (drop, r"2 missing: .*ar_decoder\.layers\.0\.norm1\.bias.*nar_predict_layers\.3\.weight"),
    "misshapen": (reshape, r"1 of another shape: ar_predict_layer\.weight \[1025, 31\] for \[1025, 32\]"),
    "prenet": (prenet, r"57 missing: ar_text_prenet\.\{1,5,9,2,6,10,14\}\.weight"),
    "renamed": (rename, r"1 missing: ar_decoder\.norm\.weight; 1 unexpected: decoder\.weight"),
    "other": (lambda tensors: tensors.clear(), "not a VALL-E X checkpoint: no ar_text_embedding"),
    "lifeiteng": (
        lambda tensors: tensors.pop("ar_language_embedding.word_embeddings.weight"),
        "no ar_language_embedding.* not trained in several languages",
    ),
    "languages": (
        lambda t: t.update({"ar_language_embedding.word_embeddings.weight": torch.zeros(5, 32)}),
        "language embedding has 5 rows",
    ),
    "audio": (
        lambda t: t.update({"ar_audio_embedding.word_embeddings.weight": torch.zeros(99, 32)}),
        "AR audio embedding has 99 rows; 1026",
    ),
    "layers": (
        lambda t: t.update({"ar_decoder.layers.999999999.norm1.bias": torch.zeros(32)}),
        r"num_layers is 1000000000, it must be a whole number in 1\.\.256",
    ),
    "heads beyond count": (
        lambda t: t.update({"nar_predict_layers.999999999.weight": torch.zeros(1)}),
        r"1 unexpected: nar_predict_layers\.999999999\.weight",
    ),
    "long number": (
        lambda t: t.update({"ar_decoder.layers." + "9" * 6000 + ".norm1.bias": torch.zeros(32)}),
        "1 unexpected: ar_decoder",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_load_model_of_tensors_that_do_not_fit_explains_them(build_model, tmp_path, name):
    change, message = UNFIT[name]
    path = edited(released_file(build_model(num_layers=1, num_text_tokens=2048), tmp_path / "m.pt"), change)
    with pytest.raises(CheckpointError, match=r"m\.pt: .*" + message) as caught:
        vallex.load_model(path)
    assert "\n" not in str(caught.value)


def test_load_model_of_safetensors_that_do_not_fit_explains_them(build_model, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(build_model(num_layers=1), path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    reshape(tensors)
    drop(tensors)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"2 missing: .*; 1 of another shape: ar_predict_layer"):
        vallex.load_model(path)


def test_load_model_without_a_recorded_number_of_heads_asks_for_it(build_model, tmp_path):
    model = build_model(num_heads=4)
    path = released_file(model, tmp_path / "m.pt", nhead=None)
    with pytest.raises(CheckpointError, match=r"m\.pt: .*heads is not recorded and the width is 32.*--heads"):
        vallex.load_model(path)
    assert vallex.load_model(path, num_heads=4).config.num_heads == 4


def test_load_model_finds_the_number_of_heads_in_the_params_of_the_file(build_model, tmp_path):
    path = released_file(build_model(num_heads=4), tmp_path / "m.pt", nhead=None, params={"nhead": 4})
    assert vallex.load_model(path).config.num_heads == 4


def test_load_model_with_num_heads_overrides_what_is_recorded(build_model, tmp_path):
    model = build_model(num_heads=4)
    released_file(model, tmp_path / "m.pt")
    save_model(model, tmp_path / "m.safetensors")
    for name in ("m.pt", "m.safetensors"):
        assert vallex.load_model(tmp_path / name).config.num_heads == 4
        assert vallex.load_model(tmp_path / name, num_heads=2).config.num_heads == 2
        for wrong in (0, 3, -4):
            with pytest.raises(CheckpointError, match=rf"{name}: .*num_heads is {wrong}, it must"):
                vallex.load_model(tmp_path / name, num_heads=wrong)


def test_load_model_of_an_absent_path_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pt: no such checkpoint.*vallex download"):
        vallex.load_model(tmp_path / "none.pt")


def test_load_model_of_a_folder_that_is_no_run_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"a folder, but not a run's: no config\.json"):
        vallex.load_model(tmp_path)


def test_load_model_of_a_run_takes_the_chosen_or_best_checkpoint(build_model, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="this run has no checkpoint yet"):
        vallex.load_model(tmp_path)
    for seed, name in enumerate(("ar-last", "ar-best", "nar-best", "nar-step-20")):
        model = build_model(seed=seed, num_layers=1)
        model.provenance = {"name": name}
        save_model(model, tmp_path / "checkpoints" / f"{name}.safetensors")
        expected = {"ar-last": None, "ar-best": "ar-best"}.get(name, "nar-best")
        if expected:
            assert vallex.load_model(tmp_path).provenance == {"name": expected}
    (tmp_path / "result.json").write_text(json.dumps({"chosen": "nar-step-20.safetensors"}))
    assert vallex.load_model(tmp_path).provenance == {"name": "nar-step-20"}
    (tmp_path / "result.json").write_text(json.dumps({"chosen": "gone.safetensors"}))
    assert vallex.load_model(tmp_path).provenance == {"name": "nar-best"}
    (tmp_path / "result.json").write_text("{half")
    assert vallex.load_model(tmp_path).provenance == {"name": "nar-best"}


FAILURES = {
    "disk full, safetensors": (
        "safetensors",
        "vallex.model.checkpoint.save_file",
        OSError(28, "No space left"),
    ),
    "disk full, released": (
        "released",
        "torch.save",
        RuntimeError("PytorchStreamWriter failed writing file"),
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_save_model_that_fails_midway_leaves_the_old_file_and_nothing_else(
    build_model, tmp_path, monkeypatch, name
):
    format, writer, error = FAILURES[name]
    model, path = build_model(num_layers=1), tmp_path / "m.ckpt"
    path.write_bytes(b"the old one")

    def half(content, target, **_settings):
        target.write_bytes(b"half")
        raise error

    monkeypatch.setattr(writer, half)
    with pytest.raises(CheckpointError, match=r"m\.ckpt: cannot be written: .*(No space|failed writing)"):
        save_model(model, path, format=format, force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["m.ckpt"]
    assert path.read_bytes() == b"the old one"


def test_save_model_to_where_no_file_can_be_says_so(build_model, tmp_path):
    model = build_model(num_layers=1)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    for target in ("file/m.safetensors", "folder.safetensors"):
        with pytest.raises(CheckpointError, match=f"{target}: cannot be written"):
            save_model(model, tmp_path / target)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.safetensors"]


def test_save_model_over_the_file_that_it_was_loaded_from_keeps_the_weights(build_model, tmp_path):
    path = tmp_path / "m.pt"
    model = vallex.load_model(released_file(build_model(num_layers=1), path))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_model(model, path, format="released", force=True)
    loaded = vallex.load_model(path)
    for name, tensor in before.items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("format", ["released", "safetensors"])
def test_load_model_then_weights_are_aligned_and_training_leaves_the_file(build_model, tmp_path, format):
    path = tmp_path / ("model.pt" if format == "released" else "model.safetensors")
    save_model(build_model(), path, format=format, force=True)
    written = path.read_bytes()
    model = vallex.load_model(path)
    # the last bits of a matrix product follow the address, which must not come from a file's header
    assert all(parameter.data_ptr() % 64 == 0 for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert path.read_bytes() == written
    loaded_again = vallex.load_model(path)
    for changed, parameter in zip(model.parameters(), loaded_again.parameters(), strict=True):
        assert torch.equal(changed, parameter + 1.0)
