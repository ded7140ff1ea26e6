"""The training passes give the original implementation's numbers, over all cases of ../shared/reference."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vallex
from vallex.languages import Language

CHECKPOINTS = {"tiny": "tiny_released.pt", "plain": "random_plain.pt", "prenet": "random_prenet.pt"}
CASES = {"tiny": 12, "plain": 12, "prenet": 5}


def load_utterance(shared, name):
    with np.load(shared / "data" / "prompts" / f"{name}.npz") as prompt:
        text = torch.from_numpy(prompt["text_tokens"][0].astype(np.int64))
        codes = torch.from_numpy(prompt["audio_tokens"][0].astype(np.int64))
        return text, codes, Language.from_prompt_code(int(prompt["lang_code"]))


def pad_batch(utterances):
    texts, codes, languages = zip(*utterances, strict=True)
    return {
        "text": torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=3),
        "text_lens": torch.tensor([len(text) for text in texts]),
        "codes": torch.nn.utils.rnn.pad_sequence(codes, batch_first=True),
        "code_lens": torch.tensor([len(c) for c in codes]),
        "language": torch.tensor([language.embedding_id for language in languages]),
    }


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")],
        ),
    ],
)
@pytest.mark.parametrize(
    ("which", "case_id"), [(which, i) for which, count in CASES.items() for i in range(count)]
)
def test_forward_of_a_reference_case_gives_its_numbers(shared, monkeypatch, which, case_id, device):
    cases = json.loads((shared / "reference" / f"forward_{which}.json").read_text())
    assert len(cases) == CASES[which]
    case = cases[case_id]
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # ten bits of a product
    model = vallex.load_model(shared / "reference" / CHECKPOINTS[which], device=device)
    batch = pad_batch([load_utterance(shared, name) for name in case["utterances"]])
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    with torch.no_grad():
        if case["stage"] == 0:
            out = model.ar_loss(**batch)
        else:
            prompt_codes = None
            if case["prompt"]:
                names, frames = case["prompt"]
                prompt_codes = torch.stack([load_utterance(shared, name)[1][:frames] for name in names])
                prompt_codes = prompt_codes.to(device)
            out = model.nar_loss(
                **batch,
                stage=case["stage"],
                prefix_mode=case["mode"],
                prefix_len=case["prefix_len"],
                segment_start=case["segment_start"],
                prompt_codes=prompt_codes,
            )
    reference = load_file(shared / "reference" / f"forward_{which}.safetensors")[f"{case_id}.logits"]
    assert out.num_targets == case["num_targets"]
    assert out.num_frames == case["num_frames"]
    # on a GPU sums are of another order, in which the tenth may become the eleventh
    assert abs(int(out.top10_correct) - case["top10_correct"]) <= (device == "cuda")
    assert float(out.loss) == pytest.approx(case["loss"], rel=2e-4)
    scale = reference.abs().max()
    assert (out.logits[:, : reference.shape[1]].cpu() - reference).abs().max() < 2e-4 * scale
    prefix = case["prefix_len"] or 0
    expected_frames = int(batch["code_lens"].max()) + (1 if case["stage"] == 0 else -prefix)
    assert out.logits.shape[1] == expected_frames
