"""Small random models and batches for the tests of vallex.model."""

import pytest
import torch

from vallex.model.config import ModelConfig
from vallex.model.network import VALLE


@pytest.fixture
def build_model():
    """Builds a seeded random model of width 32 in evaluation mode; keywords are ModelConfig's."""

    def build(seed=0, **settings):
        config = ModelConfig(
            **({"d_model": 32, "num_heads": 2, "num_layers": 2, "num_text_tokens": 70} | settings)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = VALLE(config)
            for embedding in (model.ar.text_embedding, model.ar.audio_embedding):
                torch.nn.init.normal_(embedding.weight)
            for name, buffer in model.named_buffers():
                # not the neutral statistics of a new prenet, and none that leave its ReLUs nothing above zero
                if name.endswith("running_mean"):
                    buffer.uniform_(-0.2, 0.2)
                elif name.endswith("running_var"):
                    buffer.uniform_(0.1, 0.3)
        return model.eval()

    return build


@pytest.fixture
def make_batch():
    """Draws a padded batch as ar_loss and nar_loss take it: [(phonemes, frames), ...] to a dict.

    Padding holds real-looking ids, not zeros, so that whatever reads it is seen.
    """

    def make(sizes, num_codebooks=8, seed=1):
        generator = torch.Generator().manual_seed(seed)
        text_lens, code_lens = (torch.tensor(lens) for lens in zip(*sizes, strict=True))
        batch_size, num_text, num_frames = len(sizes), int(text_lens.max()), int(code_lens.max())
        return {
            "text": torch.randint(5, 70, (batch_size, num_text), generator=generator),
            "text_lens": text_lens,
            "codes": torch.randint(0, 1024, (batch_size, num_frames, num_codebooks), generator=generator),
            "code_lens": code_lens,
            "language": torch.randint(0, 3, (batch_size, num_text), generator=generator),
        }

    return make


@pytest.fixture
def single():
    """Takes one utterance out of a batch, without its padding."""

    def take(batch, i):
        num_text, num_frames = int(batch["text_lens"][i]), int(batch["code_lens"][i])
        language = batch["language"][i : i + 1]
        return {
            "text": batch["text"][i : i + 1, :num_text],
            "text_lens": batch["text_lens"][i : i + 1],
            "codes": batch["codes"][i : i + 1, :num_frames],
            "code_lens": batch["code_lens"][i : i + 1],
            "language": language if language.ndim == 1 else language[:, :num_text],
        }

    return take
