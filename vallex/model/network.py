"""VALL-E X: the AR decoder for codebook 0 and the NAR decoder for the others, in training and in synthesis.

Both passes go through the same embedding functions; that training once left out what inference adds (the
language) is how earlier trainers of this model made noise. Losses count real targets only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vallex.errors import ConfigError
from vallex.model.batch import Batch
from vallex.model.config import BOS_ID, EOS_ID, NUM_AUDIO_CODES, ModelConfig
from vallex.model.decoding import GenerateRequest, generate
from vallex.model.dropout import Dropout
from vallex.model.layers import Decoder, SinePosition, TextPrenet, ar_mask, audio_prenet, length_mask
from vallex.model.prefix import IGNORE, NarInput, NarPrefix, nar_input


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """What a training pass gives back. Counts are 0-dimensional tensors: no step waits for the device.

    loss: [] float32, sum of cross entropy over real targets, in nats
    num_targets: [] int64, real targets
    top1_correct, top10_correct: [] int64, targets that are the likeliest, or among the ten; EOS never counts
    num_frames: [] int64, sum of code_lens
    logits: [B, T', V] float
    """

    loss: Tensor
    num_targets: Tensor
    top1_correct: Tensor
    top10_correct: Tensor
    num_frames: Tensor
    logits: Tensor


class Half(nn.Module):
    """What the AR and the NAR half have in common: text, language, positions, decoder."""

    def __init__(self, config: ModelConfig, *, adaptive: bool):
        super().__init__()
        width, dropout = config.d_model, config.dropout
        self.text_embedding = nn.Embedding(config.num_text_tokens, width)
        self.language_embedding = nn.Embedding(len(config.languages), width)
        self.text_prenet = TextPrenet(width, dropout) if config.add_prenet else None
        self.audio_prenet = audio_prenet(width, dropout) if config.add_prenet else None
        self.text_position = SinePosition(
            width, Dropout(dropout, 0.0 if adaptive else 1.0), learn_alpha=not adaptive
        )
        self.audio_position = SinePosition(width, Dropout(dropout), learn_alpha=not adaptive)
        self.decoder = Decoder(width, config.num_heads, config.num_layers, dropout, adaptive)

    def embed_text(self, text: Tensor, language: Tensor, mask: Tensor) -> Tensor:
        """Phonemes with their language, prenet and positions: the one path of training and synthesis.

        text: [B, S] int64, phoneme ids
        language: [B, S] int64, row of the language embedding for each phoneme
        mask: [B, S] bool, True at real phonemes
        returns: [B, S, D] float
        """
        x = self.text_embedding(text) + self.language_embedding(language)
        if self.text_prenet is not None:
            x = self.text_prenet(x, mask)
        return self.text_position(x)

    def place_audio(self, embedded: Tensor, positions: Tensor | None = None, first: int = 0) -> Tensor:
        """Prenet and positions of embedded frames: [B, L, D] to [B, L, D]; `positions` as in SinePosition."""
        if self.audio_prenet is not None:
            embedded = self.audio_prenet(embedded)
        return self.audio_position(embedded, positions, first)


class AutoregressiveHalf(Half):
    """Text and codebook 0 so far, to the next code of codebook 0 or EOS."""

    def __init__(self, config: ModelConfig):
        super().__init__(config, adaptive=False)
        self.audio_embedding = nn.Embedding(NUM_AUDIO_CODES + 1 + config.prepend_bos, config.d_model)
        self.predict_layer = nn.Linear(config.d_model, NUM_AUDIO_CODES + 1, bias=False)

    def forward(self, text: Tensor, language: Tensor, text_mask: Tensor, frames: Tensor) -> Tensor:
        """Teacher-forced logits; text attends to all text, audio to all text and to earlier audio.

        frames: [B, L] int64, input ids of codebook 0, BOS included
        returns: [B, L, 1025] float, of what follows each frame
        """
        x = torch.cat(
            [
                self.embed_text(text, language, text_mask),
                self.place_audio(self.audio_embedding(frames)),
            ],
            dim=1,
        )
        mask = ar_mask(text_mask, frames.shape[1])
        return self.predict_layer(self.decoder(x, mask, first_wanted=text.shape[1]))


class NonAutoregressiveHalf(Half):
    """Text, prompt and the codebooks below a stage, to the codes of the stage's codebook."""

    def __init__(self, config: ModelConfig):
        super().__init__(config, adaptive=True)
        num_codebooks, width = config.num_quantizers, config.d_model
        rows = [NUM_AUDIO_CODES + 1] + [NUM_AUDIO_CODES] * (num_codebooks - 1)
        self.audio_embeddings = nn.ModuleList(nn.Embedding(n, width) for n in rows)
        self.predict_layers = nn.ModuleList(
            nn.Linear(width, NUM_AUDIO_CODES, bias=False) for _ in range(num_codebooks - 1)
        )
        self.stage_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(num_codebooks - 1))
        for embedding in self.audio_embeddings:
            # they are heads too: logits of a new network then have unit variance, not d_model
            nn.init.normal_(embedding.weight, std=width**-0.5)
        if config.share_embedding:
            self.tie_heads()

    def tie_heads(self) -> None:
        """Makes the head of stage j + 1 and the embedding of codebook j + 2 one parameter, for j = 0..5."""
        for head, embedding in zip(self.predict_layers, self.audio_embeddings[2:], strict=False):
            head.weight = embedding.weight

    def untie_heads(self) -> None:
        """Gives every head weights of its own, with the values that it has now."""
        for head in self.predict_layers:
            head.weight = nn.Parameter(head.weight.detach().clone())

    def embed_audio(self, audio: NarInput, stage: int) -> Tensor:
        """Sums the embeddings of the codebooks that each frame shows, and places them: [B, L, D] float."""
        embedded = sum(self.audio_embeddings[j](audio.codes[..., j]) for j in range(stage))
        if audio.prompt_span:
            span = audio.codes[:, : audio.prompt_span]
            above = sum(
                self.audio_embeddings[j](span[..., j]) for j in range(stage, len(self.audio_embeddings))
            )
            above = above * audio.prompt[:, : audio.prompt_span, None]
            embedded = embedded + F.pad(above, (0, 0, 0, embedded.shape[1] - above.shape[1]))
        return self.place_audio(embedded, audio.positions)

    def forward(
        self,
        text: Tensor,
        language: Tensor,
        text_mask: Tensor,
        audio: NarInput,
        stage: int,
        first_wanted: int,
    ) -> Tensor:
        """Logits of codebook `stage`; everything attends to everything.

        stage: 1..K-1
        first_wanted: frames before this one need no logits
        returns: [B, L - first_wanted, 1024] float
        """
        x = torch.cat([self.embed_text(text, language, text_mask), self.embed_audio(audio, stage)], dim=1)
        mask = None
        if audio.valid is not None:
            mask = torch.cat([text_mask, audio.valid], dim=1)[:, None, None, :]
        hidden = self.decoder(
            x,
            mask,
            self.stage_embeddings[stage - 1].weight,
            first_wanted=text.shape[1] + first_wanted,
        )
        return self.predict_layers[stage - 1](hidden)


class VALLE(nn.Module):
    """The whole network. `ar` and `nar` are its halves; a model of one quantizer has no `nar`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.provenance: dict = {}
        """What the weights were made with (codec, tokenizer, data, run); written into checkpoints."""
        self.precision: str | None = None
        """What `to_precision` made of it; None is float32 that can be trained and saved."""
        self.ar = AutoregressiveHalf(config)
        self.nar = NonAutoregressiveHalf(config) if config.num_quantizers > 1 else None

    def set_dropout(self, dropout: float) -> None:
        """Sets the rate of every dropout; the prenets' follow in proportion."""
        self.config = replace(self.config, dropout=dropout)
        for module in self.modules():
            if isinstance(module, Dropout):
                module.set_rate(dropout)

    def untie_heads(self) -> None:
        """Gives every NAR head weights of its own; the network computes what it did before."""
        self._check_nar_stage(None)
        self.nar.untie_heads()
        self.config = replace(self.config, share_embedding=False)

    def forward(
        self,
        batch: Batch,
        stage: int | None = 0,
        *,
        prefix: NarPrefix | None = None,
        generator: torch.Generator | None = None,
        label_smoothing: float = 0.0,
    ) -> LossOutput:
        """The training pass of the AR half (stage 0), or of the NAR half (stage 1..7, or None to draw one).

        prefix: the NAR's prefix where it is not drawn
        generator: where draws come from, on the CPU
        label_smoothing: share of each target that is spread over all classes (Szegedy et al. 2016)
        """
        if stage == 0:
            return self._ar_pass(batch, label_smoothing)
        return self._nar_pass(batch, stage, prefix or NarPrefix(), generator, label_smoothing)

    def ar_loss(
        self, text: Tensor, text_lens: Tensor, codes: Tensor, code_lens: Tensor, language: Tensor
    ) -> LossOutput:
        """Cross entropy of codebook 0 and one EOS an utterance.

        text: [B, S] int64, phoneme ids; text_lens: [B] int64
        codes: [B, T, K] int64; code_lens: [B] int64
        language: [B] or [B, S] int64, rows of the language embedding
        returns: LossOutput, logits [B, T + 1, 1025] (T without BOS: the first frame is then not predicted)
        """
        return self(_batch(text, text_lens, codes, code_lens, language), 0)

    def nar_loss(
        self,
        text: Tensor,
        text_lens: Tensor,
        codes: Tensor,
        code_lens: Tensor,
        language: Tensor,
        stage: int | None = None,
        prefix_mode: int | None = None,
        prefix_len: int | Tensor | None = None,
        segment_start: int | Tensor | None = None,
        prompt_codes: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> LossOutput:
        """Cross entropy of codebook `stage` over the frames that are not prompt.

        text, text_lens, codes, code_lens, language: as in ar_loss
        stage: 1..K-1; None is drawn
        prefix_mode: 0, 1, 2 or 4 (DESIGN: prefix modes); None is the model's own
        prefix_len: int or [B] int64, frames of the prefix (mode 1) or segment (mode 2); None is drawn
        segment_start: int or [B] int64, first frame of the segment (mode 2), clamped to T_b - length
        prompt_codes: [B, P, K] int64, another utterance's frames (mode 4)
        generator: where draws come from, on the CPU
        returns: LossOutput, logits [B, T - prefix_len, 1024] in mode 1 (the shortest prefix, if they
            differ), else [B, T, 1024]
        """
        self._check_nar_stage(stage)
        batch = _batch(text, text_lens, codes, code_lens, language, prompt_codes)
        prefix = NarPrefix(mode=prefix_mode, length=prefix_len, segment_start=segment_start)
        return self(batch, stage, prefix=prefix, generator=generator)

    def generate(
        self,
        text: Tensor,
        prompt_codes: Tensor,
        num_prompt_text: int,
        prompt_language: str = "en",
        text_language: str | Sequence[str] = "en",
        top_k: int | None = None,
        temperature: float = 1.0,
        nar_temperature: float = 0.0,
        prefix_mode: int | None = None,
        max_frames: int | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Speaks the target phonemes in the voice of the prompt, exactly: no loop detection and no redraw.

        text: [S] int64, phoneme ids of prompt and target together
        prompt_codes: [P, K] int64, P may be 0
        num_prompt_text: how many of the ids belong to the prompt
        prompt_language, text_language: language codes; one for all target phonemes, or one for each
        top_k: codes that are drawn from, 1 for greedy, None for all
        temperature, nar_temperature: of the AR and of the NAR decoder; 0 is greedy
        max_frames: None is 16 for each phoneme
        returns: [T, K] int64, up to EOS or max_frames
        """
        request = GenerateRequest(
            text=text,
            prompt_codes=prompt_codes,
            num_prompt_text=num_prompt_text,
            prompt_language=prompt_language,
            text_language=text_language,
            top_k=top_k,
            temperature=temperature,
            nar_temperature=nar_temperature,
            prefix_mode=prefix_mode,
            max_frames=max_frames,
            seed=seed,
        )
        return generate(self, request).codes

    def _ar_pass(self, batch: Batch, label_smoothing: float) -> LossOutput:
        codes = batch.codes[..., 0]
        valid = length_mask(batch.code_lens, codes.shape[1])
        text_mask = length_mask(batch.text_lens, batch.text.shape[1])
        targets = F.pad(codes.masked_fill(~valid, IGNORE), (0, 1), value=IGNORE)
        targets = targets.scatter(1, batch.code_lens.unsqueeze(1), EOS_ID)
        if self.config.prepend_bos:
            frames = F.pad(codes, (1, 0), value=BOS_ID)
        else:
            frames, targets = codes, targets[:, 1:]
        logits = self.ar(batch.text, batch.language, text_mask, frames)
        return _score(logits, targets, batch.code_lens, label_smoothing)

    def _nar_pass(
        self,
        batch: Batch,
        stage: int | None,
        prefix: NarPrefix,
        generator: torch.Generator | None,
        label_smoothing: float,
    ) -> LossOutput:
        self._check_nar_stage(stage)
        if stage is None:
            stage = int(torch.randint(1, self.config.num_quantizers, (), generator=generator))
        audio, targets, first_wanted = nar_input(self.config, batch, stage, prefix, generator)
        text_mask = length_mask(batch.text_lens, batch.text.shape[1])
        logits = self.nar(batch.text, batch.language, text_mask, audio, stage, first_wanted)
        return _score(logits, targets, batch.code_lens, label_smoothing)

    def _check_nar_stage(self, stage: int | None) -> None:
        if self.nar is None:
            raise ConfigError("this model has one quantizer and no NAR half: train its AR half only")
        if stage is not None and not 1 <= stage < self.config.num_quantizers:
            raise ConfigError(
                f"stage is {stage}; a NAR stage of this model is 1..{self.config.num_quantizers - 1}"
            )


def _batch(text, text_lens, codes, code_lens, language, prompt_codes=None) -> Batch:
    """The contract's loose tensors as a Batch; language [B] is spread over the phonemes."""
    if language.ndim == 1:
        language = language.unsqueeze(1).expand_as(text)
    return Batch(
        text=text,
        text_lens=text_lens,
        codes=codes,
        code_lens=code_lens,
        language=language,
        prompt_codes=prompt_codes,
    )


def _score(logits: Tensor, targets: Tensor, code_lens: Tensor, label_smoothing: float) -> LossOutput:
    """Sums cross entropy over the targets that are not IGNORE; logits [B, L, V], targets [B, L]."""
    real = targets != IGNORE
    loss = F.cross_entropy(
        logits.flatten(0, 1).float(),
        targets.flatten(),
        ignore_index=IGNORE,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    with torch.no_grad():
        own = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1))
        # not "greater": where training has diverged, NaN must not pass for a hit
        rank = (~(logits <= own)).sum(dim=-1)
        counted = real & (targets != EOS_ID)
    return LossOutput(
        loss=loss,
        num_targets=real.sum(),
        top1_correct=((rank < 1) & counted).sum(),
        top10_correct=((rank < 10) & counted).sum(),
        num_frames=code_lens.sum(),
        logits=logits,
    )
