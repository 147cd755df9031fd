"""A language model whose answers are known: one token per position, whatever the prompt."""

from __future__ import annotations

import torch
from fake_denoiser import MASK, FakeDenoiser
from lm_eval.api.instance import Instance
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from boe.denoisers.loading import LoadedModel
from boe.lm_eval.model import BoeLM

# Tokens of several characters come from the model only: texts are tokenised by characters.
TOKENS = ("[MASK]", "<eos>", *"abcdeQ:\n ", "b\n", "\nQ", ":a")
ID = {token: k for k, token in enumerate(TOKENS)}


def toy_tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel(dict(ID), unk_token="e"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, mask_token="[MASK]", eos_token="<eos>", name_or_path="toy/words"
    )


class PositionDenoiser(FakeDenoiser):
    """Writes ``answer`` behind prompts of ``start`` tokens, from left to right.

    ``later`` are places of the answer that are revealed last.
    """

    def __init__(
        self,
        answer: list[str],
        start: int = 1,
        later: tuple[int, ...] = (),
        max_length: int | None = None,
        sharpness: float = 4.0,
    ) -> None:
        table = torch.zeros(64, len(TOKENS), dtype=torch.float64)
        for k, token in enumerate(answer):
            table[start + k, ID[token]] = sharpness - 0.05 * k - (2.0 if k in later else 0.0)
        super().__init__(table, max_length=max_length)
        assert ID["[MASK]"] == MASK


def toy_lm(denoiser: FakeDenoiser, **arguments: object) -> BoeLM:
    loaded = LoadedModel(denoiser, toy_tokenizer(), "toy")  # type: ignore[arg-type]
    return BoeLM(loaded=loaded, **{"sampler": "confidence", **arguments})


def generation(context: str = "Q", repeats: int = 1, doc: int = 0, **options: object) -> Instance:
    wanted = {"until": [], "max_gen_toks": 8, **options}
    metadata = ("toy", doc, repeats)
    return Instance("generate_until", {}, (context, wanted), idx=0, metadata=metadata)


def continuation(context: str, text: str, doc: int = 0) -> Instance:
    return Instance("loglikelihood", {}, (context, text), idx=0, metadata=("toy", doc, 1))


def whole(text: str) -> Instance:
    return Instance("loglikelihood_rolling", {}, (text,), idx=0, metadata=("toy", 0, 1))


def ids_of(text: str) -> Tensor:
    return torch.tensor([ID[character] for character in text])
