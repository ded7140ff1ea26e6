"""Precisions: how near each stays to float32 on the reference cases, and what each refuses.

The README's table of agreement is printed by: pytest -s tests/vallex/model/test_precision.py -k agreement
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import vallex
from vallex.errors import CheckpointError, ConfigError
from vallex.languages import Language
from vallex.model.checkpoint import save_model
from vallex.model.decoding import GenerateRequest, generate_batch
from vallex.model.precision import Int8Linear, PackedLinear, has_cpu_bfloat16, to_precision

needs_bfloat16 = pytest.mark.skipif(not has_cpu_bfloat16(), reason="this CPU does not multiply bfloat16")
ON_CPU = ["float32", pytest.param("bfloat16", marks=needs_bfloat16), "int8"]
CASES = ("librispeech_1", "vctk_2", "acou_3", "paimon", "babara", "cafe", "emo_amused", "esta")
# (least top-1 agreement, largest ratio of losses), teacher-forced; (least share of equal greedy codes)
LEAST = {
    "float32": (1.0, 1.0001, 1.0),
    "bfloat16": (0.99, 1.02, 0.95),
    "float16": (0.99, 1.02, 0.95),
    "int8": (0.98, 1.05, 0.6),
}


@pytest.fixture(scope="module")
def reference(shared):
    return vallex.load_model(shared / "reference" / "tiny_released.pt")


def utterance(shared, name):
    with np.load(shared / "data" / "prompts" / f"{name}.npz") as prompt:
        return {
            "text": torch.from_numpy(prompt["text_tokens"].astype(np.int64)),
            "text_lens": torch.tensor([prompt["text_tokens"].shape[1]]),
            "codes": torch.from_numpy(prompt["audio_tokens"].astype(np.int64)),
            "code_lens": torch.tensor([prompt["audio_tokens"].shape[1]]),
            "language": torch.tensor([Language.from_prompt_code(int(prompt["lang_code"])).embedding_id]),
        }


def forced_top1(model, batch):
    """Likeliest codes of AR and of all NAR stages, and the sum of their losses."""
    with torch.no_grad():
        passes = [model.ar_loss(**batch)]
        passes += [
            model.nar_loss(**batch, stage=stage, prefix_mode=1, prefix_len=33) for stage in range(1, 8)
        ]
    loss = sum(float(out.loss) for out in passes)
    return torch.cat([out.logits.argmax(dim=-1).flatten() for out in passes]), loss


def greedy_requests(shared):
    cases = json.loads((shared / "reference" / "generate_tiny.json").read_text())
    tensors = load_file(shared / "reference" / "generate_tiny.safetensors")
    return [
        GenerateRequest(
            text=tensors[f"{i}.text"],
            prompt_codes=tensors[f"{i}.prompt_codes"],
            num_prompt_text=case["num_prompt_text"],
            prompt_language=case["prompt_language"],
            text_language=case["text_language"],
            top_k=1,
            max_frames=case["frames"] + 50,
        )
        for i, case in enumerate(cases)
    ]


def greedy_codes(shared, model):
    """Each request alone."""
    return [
        result.codes for request in greedy_requests(shared) for result in generate_batch(model, [request])
    ]


def equal_share(codes, others):
    """Frames of codebook 0 that are equal up to the first that is not, of all frames."""
    equal = 0
    for one, other in zip(codes, others, strict=True):
        num_frames = min(len(one), len(other))
        differs = (one[:num_frames, 0] != other[:num_frames, 0]).nonzero()
        equal += int(differs[0]) if len(differs) else num_frames
    return equal / sum(map(len, codes))


@pytest.mark.parametrize("precision", [*ON_CPU, "float16"])
def test_precision_agreement_with_float32_on_the_reference_cases(shared, reference, precision):
    path = shared / "reference" / "tiny_released.pt"
    if precision == "float16":
        # what `to_precision` does on a GPU, on this CPU
        model = vallex.load_model(path).to(torch.float16)
    else:
        model = vallex.load_model(path, precision=precision)
        assert model.precision == precision
    batches = [utterance(shared, name) for name in CASES]
    pairs = [(forced_top1(reference, batch), forced_top1(model, batch)) for batch in batches]
    top1 = torch.cat([one == other for (one, _), (other, _) in pairs]).float().mean().item()
    loss_ratio = sum(loss for _, (_, loss) in pairs) / sum(loss for (_, loss), _ in pairs)
    greedy = equal_share(greedy_codes(shared, reference), greedy_codes(shared, model))
    print(f"\n| {precision} | {top1:.2%} | {loss_ratio:.4f} | {greedy:.1%} |")
    least_top1, largest_ratio, least_greedy = LEAST[precision]
    assert top1 >= least_top1
    assert loss_ratio <= largest_ratio
    assert greedy >= least_greedy


def test_int8_rows_of_a_batch_move_each_other_little(shared):
    model = vallex.load_model(shared / "reference" / "tiny_released.pt", precision="int8")
    together = [result.codes for result in generate_batch(model, greedy_requests(shared))]
    share = equal_share(greedy_codes(shared, model), together)
    print(f"\nint8, together and alone: {share:.1%}")
    assert share >= 0.6


@pytest.mark.parametrize("precision", ON_CPU)
def test_precision_leaves_heads_and_what_is_tied_to_them_in_float32(shared, precision):
    model = vallex.load_model(shared / "reference" / "tiny_released.pt", precision=precision)
    heads = {"ar.predict_layer"} | {f"nar.predict_layers.{j}" for j in range(7)}
    for name, module in model.named_modules():
        if name in heads:
            assert isinstance(module, nn.Linear | PackedLinear), name
            assert getattr(module, "dtype", torch.float32) == torch.float32
        else:
            assert not isinstance(module, nn.Linear), name
    assert model.nar.predict_layers[0].weight is model.nar.audio_embeddings[2].weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("precision", ON_CPU)
@pytest.mark.parametrize("shape", [(1, 1, 32), (3, 7, 32), (5, 32), (1, 0, 32)])
def test_linear_of_each_precision_is_the_linear_it_was_made_of(precision, shape):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear, x = nn.Linear(32, 48), torch.randn(shape)
    made = Int8Linear(linear) if precision == "int8" else PackedLinear(linear, getattr(torch, precision))
    tolerance = {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.03}[precision]
    assert made(x).dtype == torch.float32
    torch.testing.assert_close(made(x), linear(x).detach(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_load_model_in_a_precision_of_a_file_in_any_dtype_speaks_as_one_converted_later(
    build_model, tmp_path, stored
):
    model = build_model(add_prenet=True)
    save_model(model, tmp_path / "m.safetensors", dtype=stored)
    loaded = vallex.load_model(tmp_path / "m.safetensors", precision="float32")
    later = to_precision(vallex.load_model(tmp_path / "m.safetensors"), "float32")
    (tmp_path / "m.safetensors").write_bytes(b"gone")
    request = {"num_prompt_text": 1, "top_k": 1, "max_frames": 8}
    text, prompt = torch.tensor([7, 8, 9]), torch.ones(4, 8, dtype=torch.long)
    assert torch.equal(loaded.generate(text, prompt, **request), later.generate(text, prompt, **request))


def test_to_precision_of_what_cannot_be_says_why(build_model):
    model = build_model(num_layers=1)
    with pytest.raises(
        ConfigError, match="precision 'fp4' is not known; it must be one of float32, bfloat16"
    ):
        to_precision(model, "fp4")
    with pytest.raises(ConfigError, match="float16 is for GPUs; on a CPU take float32, bfloat16 or int8"):
        to_precision(model, "float16")
    assert model.precision is None
    to_precision(model, "int8")
    with pytest.raises(ConfigError, match="in int8 already; load it again for float32"):
        to_precision(model, "float32")


def test_to_precision_bfloat16_on_a_cpu_without_it_says_so(build_model, monkeypatch):
    monkeypatch.setattr("vallex.model.precision.has_cpu_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match="bfloat16: this CPU has no instructions for it"):
        to_precision(build_model(num_layers=1), "bfloat16")


def test_save_model_of_one_made_ready_to_speak_is_refused(build_model, tmp_path):
    model = to_precision(build_model(num_layers=1), "int8")
    with pytest.raises(CheckpointError, match=r"m\.safetensors: .* ready to speak in int8"):
        save_model(model, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []
