"""The scorer: a small causal language model that judges what denoisers write.

It never saw the denoiser's text, nor that of validation and test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from boe.tasks.prose.corpus import PAD_ID, VOCABULARY
from boe.tasks.text.model import ModelShape

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

_BATCH = 64


def build_scorer(shape: ModelShape, length: int, seed: int) -> PreTrainedModel:
    """An untrained GPT-2 for texts of at most ``length`` tokens behind a first token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=length + 1,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=shape.width**-0.5 / 2,
        bos_token_id=PAD_ID,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def next_token_nats(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What each token of ``ids`` (N, L) costs given those before it.

    Returns:
        fp32 (N, L), nats, and the last layer's states (N, L, D) at the same positions.
    """
    first = torch.full_like(ids[:, :1], PAD_ID)
    output = model(input_ids=torch.cat((first, ids), dim=1), output_hidden_states=True)
    nats = cross_entropy(output.logits[:, :-1].float().transpose(1, 2), ids, reduction="none")
    return nats, output.hidden_states[-1][:, 1:]


@dataclass(frozen=True)
class ScoredText:
    """What the scorer makes of one text.

    Attributes:
        tokens: how many it has.
        nats: their negative log-likelihood together.
        unigram_entropy: of the counts of its tokens, nats.
        feature: fp32 (D,), the mean of the last layer's states, for MAUVE.
    """

    tokens: int
    nats: float
    unigram_entropy: float
    feature: Tensor

    @property
    def perplexity(self) -> float:
        return float(torch.tensor(self.nats / self.tokens, dtype=torch.float64).exp())


class Scorer:
    """A trained causal model with its tokenizer, on the CPU in float32.

    Args:
        length: of the longest text, in tokens; a longer one is cut.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, length: int) -> None:
        self.model, self.tokenizer, self.length = model, tokenizer, length

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> list[ScoredText]:
        """Each text, tokenised anew: denoisers may spell a word in unusual tokens.

        Raises:
            ValueError: a text is empty.
        """
        rows = [self.tokenizer.encode(text).ids[: self.length] for text in texts]
        for number, row in enumerate(rows):
            if not row:
                raise ValueError(f"texts must not be empty, got {texts[number]!r} at {number}")
        found: list[ScoredText] = []
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            longest = max(map(len, batch))
            # The model is causal: padding behind a text does not reach it.
            ids = torch.stack([pad(torch.tensor(r), (0, longest - len(r))) for r in batch])
            nats, states = next_token_nats(self.model, ids)
            for row, cost, state in zip(batch, nats.double(), states, strict=True):
                count = len(row)
                found.append(
                    ScoredText(
                        count,
                        float(cost[:count].sum()),
                        unigram_entropy(row),
                        state[:count].mean(dim=0),
                    )
                )
        return found


def unigram_entropy(ids: Sequence[int]) -> float:
    """Entropy of how often each id occurs among ``ids``, nats."""
    shares = torch.tensor(ids).unique(return_counts=True)[1].double() / len(ids)
    return float(-(shares * shares.log()).sum())


def load_scorer(checkpoint: Path, tokenizer: Tokenizer, length: int) -> Scorer:
    """The scorer from ``checkpoint``, computing in float32.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    from transformers import GPT2LMHeadModel

    if not (checkpoint / "model.safetensors").exists():
        raise FileNotFoundError(f"{checkpoint} holds no model.safetensors: train it first")
    model = GPT2LMHeadModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return Scorer(model, tokenizer, length)
