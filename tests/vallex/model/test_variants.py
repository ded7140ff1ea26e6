"""Models in the released format that are not the released one: read from their tensors, or refused."""

import pytest
import torch

from vallex.errors import CheckpointError, ConfigError, PromptError
from vallex.model.checkpoint import load_model, save_model


@pytest.fixture
def reload(build_model, tmp_path):
    """Builds a small model, writes it in the released format, and loads it by its tensors alone."""

    def write_and_load(**settings):
        path = tmp_path / "variant.pt"
        save_model(build_model(**settings), path, format="released", force=True)
        return load_model(path)

    return write_and_load


@pytest.mark.parametrize("num_quantizers", [1, 2, 4, 12])
def test_load_model_of_another_number_of_quantizers_speaks_that_many_codebooks(reload, num_quantizers):
    model = reload(num_quantizers=num_quantizers)
    assert model.config.num_quantizers == num_quantizers
    assert (model.nar is None) == (num_quantizers == 1)
    prompt = torch.ones(3, num_quantizers, dtype=torch.long)
    codes = model.generate(torch.tensor([7, 8, 9]), prompt, 1, top_k=1, max_frames=5)
    assert codes.shape[1] == num_quantizers
    with pytest.raises(PromptError, match=rf"prompt codes are .*; this model needs \[P, {num_quantizers}\]"):
        model.generate(torch.tensor([7, 8, 9]), torch.ones(3, 8, dtype=torch.long), 1)


def test_load_model_of_one_quantizer_trains_its_ar_half_only(reload, make_batch):
    model, batch = reload(num_quantizers=1), make_batch([(4, 6)], num_codebooks=1)
    assert model.ar_loss(**batch).num_targets == 7
    with pytest.raises(ConfigError, match="one quantizer and no NAR half: train its AR half only"):
        model.nar_loss(**batch, stage=1)


def test_load_model_without_bos_begins_after_the_first_frame_of_a_prompt(reload, make_batch):
    model = reload(prepend_bos=False, num_quantizers=2)
    assert not model.config.prepend_bos
    out = model.ar_loss(**make_batch([(4, 6)], num_codebooks=2))
    # frames 2 to 6 and EOS: nothing stands before the first, from which it could be told
    assert out.num_targets == 6
    assert out.logits.shape == (1, 6, 1025)
    text = torch.tensor([7, 8, 9])
    assert model.generate(text, torch.ones(2, 2, dtype=torch.long), 1, max_frames=4).shape[1] == 2
    with pytest.raises(PromptError, match="no BOS and cannot begin without a prompt: give one"):
        model.generate(text, torch.ones(0, 2, dtype=torch.long), 0)


@pytest.mark.parametrize("half", ["ar", "nar"])
def test_load_model_without_language_embeddings_is_refused_with_the_reason(build_model, tmp_path, half):
    save_model(build_model(), tmp_path / "whole.pt", format="released", force=True)
    content = torch.load(tmp_path / "whole.pt", weights_only=True)
    del content["model"][f"{half}_language_embedding.word_embeddings.weight"]
    torch.save(content, tmp_path / "lifeiteng.pt")
    with pytest.raises(CheckpointError, match=rf"{half}_language_embedding\.word_embeddings\.weight"):
        load_model(tmp_path / "lifeiteng.pt")


def test_load_model_of_lifeiteng_says_that_it_is_not_vall_e_x(build_model, tmp_path):
    save_model(build_model(prepend_bos=False), tmp_path / "whole.pt", format="released", force=True)
    content = torch.load(tmp_path / "whole.pt", weights_only=True)
    content["model"] = {name: t for name, t in content["model"].items() if "language_embedding" not in name}
    torch.save(content, tmp_path / "lifeiteng.pt")
    with pytest.raises(
        CheckpointError, match=r"not trained in several languages: lifeiteng's .* not VALL-E X"
    ):
        load_model(tmp_path / "lifeiteng.pt")
