"""A language model that writes known answers, over characters or over bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fake_denoiser import FakeDenoiser
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from boe.canvas import Canvas
from boe.denoisers.loading import LoadedModel

# Tokens of several characters come from the model only: texts are tokenised by characters.
TOKENS = ("[MASK]", "<eos>", "<|eot_id|>", *"abcdeuxQ:\n .", "b\n", "\nQ", ":a")
ID = {token: k for k, token in enumerate(TOKENS)}
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}"
    "{% if not (loop.last and m.role == 'assistant') %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def characters(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel(dict(ID), unk_token="e"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, mask_token="[MASK]", eos_token="<eos>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    tokenizer.chat_template = template
    return tokenizer


def byte_tokens() -> PreTrainedTokenizerFast:
    """One token per byte, so that most characters take several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"[MASK]": 0, "<eos>": 1} | {c: k + 2 for k, c in enumerate(alphabet)}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="[MASK]", eos_token="<eos>")


class Writer(FakeDenoiser):
    """Writes ``answers[k]`` at the masks of canvases that begin with ``openings[k]``.

    Masks are surest from left to right, but for the places ``later`` of the answer.
    """

    def __init__(
        self,
        answers: dict[tuple[int, ...], Sequence[int]],
        vocabulary: int,
        later: tuple[int, ...] = (),
        max_length: int | None = None,
    ) -> None:
        super().__init__(torch.zeros(1, vocabulary, dtype=torch.float64), max_length=max_length)
        self.answers, self.later = answers, later

    def predict(self, canvas: Canvas, positions, keep="nothing"):
        self.table = torch.zeros(canvas.length, self.facts.vocab_size, dtype=torch.float64)
        prediction = super().predict(canvas, positions, keep)
        for row, ids in enumerate(canvas.ids.tolist()):
            opening, answer = next(
                (o, a) for o, a in self.answers.items() if tuple(ids[: len(o)]) == o
            )
            for slot, position in enumerate(positions[row].tolist()):
                place = position - len(opening)
                if position >= 0 and place < len(answer):
                    sureness = 6.0 - 0.05 * place - 3.0 * (place in self.later)
                    prediction.logits[row, slot, answer[place]] = sureness
        return prediction


def writer(tokenizer: PreTrainedTokenizerFast, *texts: tuple[str, list[str] | str], **options):
    """A loaded model that answers the prompts as given; answers are lists of tokens or texts."""
    answers: dict[tuple[int, ...], list[int]] = {}
    for prompt, answer in texts:
        ids = (
            tokenizer(answer, add_special_tokens=False).input_ids
            if isinstance(answer, str)
            else tokenizer.convert_tokens_to_ids(answer)
        )
        answers[tuple(tokenizer(prompt, add_special_tokens=False).input_ids)] = ids
    return LoadedModel(Writer(answers, len(tokenizer), **options), tokenizer, "toy")
