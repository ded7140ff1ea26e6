"""What each output depends on, read off gradients and padding; and the smallest prompts and results."""

import pytest
import torch

from vallex.model.config import PREFIX_MODES

SIZES = [(6, 14), (9, 10), (4, 5)]


def watch(modules):
    """Keeps the outputs of modules, with their gradients."""
    seen = {}

    def keep(name):
        def hook(_module, _args, output):
            output.retain_grad()
            seen.setdefault(name, []).append(output)

        return hook

    for name, module in modules.items():
        module.register_forward_hook(keep(name))
    return seen


def reached(outputs):
    """The frames that any of the outputs passed a gradient to: [B, L] bool."""
    return sum(output.grad.abs().sum(dim=-1) for output in outputs if output.grad is not None) > 0


@pytest.mark.parametrize("stage", [1, 3, 7])
@pytest.mark.parametrize("prefix_len", [0, 4])
def test_nar_logits_reach_back_to_lower_codebooks_of_all_frames_and_to_all_of_the_prompt(
    build_model, make_batch, stage, prefix_len
):
    model, batch = build_model(share_embedding=False), make_batch([(6, 10), (4, 7)])
    seen = watch(dict(enumerate(model.nar.audio_embeddings)) | {"text": model.nar.text_embedding})
    out = model.nar_loss(**batch, stage=stage, prefix_mode=1, prefix_len=prefix_len)
    out.logits[1, 0].square().sum().backward()  # one frame of the second utterance
    assert reached(seen["text"]).sum(dim=1).tolist() == [0, 4]
    for codebook in range(8):
        expected = 0 if prefix_len == 0 and codebook >= stage else 7 if codebook < stage else prefix_len
        frames = torch.zeros(2, 10, dtype=torch.bool)
        for output in seen.get(codebook, []):
            if output.grad is not None:
                frames[:, : output.shape[1]] |= output.grad.abs().sum(dim=-1) > 0
        assert not frames[0].any(), codebook
        assert frames[1].tolist() == [True] * expected + [False] * (10 - expected), codebook


@pytest.mark.parametrize("add_prenet", [False, True])
def test_ar_logits_of_a_padded_utterance_reach_to_nothing_of_its_padding(build_model, make_batch, add_prenet):
    model, batch = build_model(add_prenet=add_prenet), make_batch([(6, 10), (4, 7)])
    seen = watch({"text": model.ar.text_embedding, "audio": model.ar.audio_embedding})
    model.ar_loss(**batch).logits[1, 7].square().sum().backward()
    assert reached(seen["text"]).tolist() == [[False] * 6, [True] * 4 + [False] * 2]
    # BOS before the frames
    assert reached(seen["audio"]).tolist() == [[False] * 11, [True] * 8 + [False] * 3]


@pytest.mark.parametrize("add_prenet", [False, True])
@pytest.mark.parametrize("mode", [None, *PREFIX_MODES])
def test_logits_are_the_same_whatever_an_utterance_is_padded_with(build_model, make_batch, mode, add_prenet):
    model, batch = build_model(add_prenet=add_prenet), make_batch(SIZES)
    other = make_batch(SIZES, seed=7)
    for name, lens in (("text", "text_lens"), ("language", "text_lens"), ("codes", "code_lens")):
        for i, length in enumerate(batch[lens].tolist()):
            other[name][i, :length] = batch[name][i, :length]
        assert not torch.equal(other[name], batch[name])
    if mode is None:
        outs = [model.ar_loss(**one) for one in (batch, other)]
        more = 1
    else:
        prompts = make_batch([(1, 6)] * 3, seed=3)["codes"] if mode == 4 else None
        fixed = {
            "stage": 2,
            "prefix_mode": mode,
            "prefix_len": 3,
            "segment_start": 1,
            "prompt_codes": prompts,
        }
        outs = [model.nar_loss(**one, **fixed) for one in (batch, other)]
        more = -3 if mode == 1 else 0
    for i, num_frames in enumerate(batch["code_lens"].tolist()):
        first, second = (out.logits[i, : num_frames + more] for out in outs)
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)
    assert outs[0].loss.item() == pytest.approx(outs[1].loss.item(), rel=1e-6)


@pytest.mark.parametrize("mode", PREFIX_MODES)
@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("num_prompt", [0, 1, 2, 3, 4, 5])
def test_generate_from_and_of_a_few_frames_gives_them(build_model, make_batch, mode, num_frames, num_prompt):
    model = build_model(num_layers=1, prefix_mode=mode)
    batch = make_batch([(5, 6)])
    settings = {"num_prompt_text": 2, "top_k": 1, "nar_temperature": 0.0}
    prompt = batch["codes"][0, :num_prompt]
    codes = model.generate(batch["text"][0], prompt, **settings, max_frames=num_frames)
    assert codes.shape == (num_frames, 8)
    assert 0 <= int(codes.min()) <= int(codes.max()) < 1024
    longer = model.generate(batch["text"][0], prompt, **settings, max_frames=8)
    assert torch.equal(codes[:, 0], longer[:num_frames, 0])


@pytest.mark.parametrize("accent", ["zh", "ja"])
def test_generate_with_an_accent_is_what_training_predicts_for_those_languages(
    build_model, make_batch, accent
):
    """Phonemes of one language, embedded as another; the prompt keeps its own."""
    model, batch = build_model(), make_batch([(7, 6)])
    steps = []
    model.ar.predict_layer.register_forward_hook(lambda _module, _args, output: steps.append(output.clone()))
    text, prompt = batch["text"], batch["codes"]
    settings = {"num_prompt_text": 3, "prompt_language": "en", "top_k": 1, "max_frames": 5}
    codes = model.generate(text[0], prompt[0], text_language=accent, **settings)
    spoken = torch.cat(steps)
    rows = torch.tensor([[0, 0, 0] + [model.config.languages.index(accent)] * 4])
    whole = torch.cat([prompt, codes[None]], dim=1)
    lens = {"text_lens": torch.tensor([7]), "code_lens": torch.tensor([11])}
    with torch.no_grad():
        trained = model.ar_loss(text=text, codes=whole, language=rows, **lens).logits[0, 6:]
    torch.testing.assert_close(spoken, trained, atol=1e-4, rtol=1e-4)
    plain = model.generate(text[0], prompt[0], text_language="en", **settings)
    assert not torch.equal(plain, codes)
