"""What the probe finds out about a model, and whom it turns away."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ARCHITECTURES, MASK_ID, VOCABULARY, random_words, randomise, tiny_denoiser
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    MPNetConfig,
    MPNetForMaskedLM,
)

from boe import generate
from boe.canvas import Canvas
from boe.denoisers import UnsupportedModel
from boe.denoisers.transformers_model import TransformersDenoiser
from boe.samplers import BoE

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


class MixingOutput(nn.Module):
    """A feed-forward output that blends in the row to the left."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden, residual):
        out = self.inner(hidden, residual)
        return out + 0.1 * out.roll(1, dims=1)


class NeighbourMixingBert(BertForMaskedLM):
    """Rows reach their neighbours outside attention, as in a convolution."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        layer = self.bert.encoder.layer[0]
        layer.output = MixingOutput(layer.output)


class HeadAsMatrixBert(BertForMaskedLM):
    """Uses its output embeddings' weight without calling the module."""

    def forward(self, input_ids=None, **options):
        out = self.bert(input_ids=input_ids, **options).last_hidden_state
        hidden = self.cls.predictions.transform(out)
        logits = nn.functional.linear(hidden, self.cls.predictions.decoder.weight)
        return type("Output", (), {"logits": logits})()


class OffsetEmbedding(nn.Embedding):
    """Not a lookup: a constant is added to every row."""

    def forward(self, ids):
        return super().forward(ids) + 1.0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_supported_architecture_can_be_replayed(name: str) -> None:
    found = tiny_denoiser(name).capabilities
    assert found.replay_refusal is None
    assert found.embedding_scale == 1.0


@pytest.mark.parametrize(("name", "offset"), [("bert", 0), ("roberta", 2), ("modernbert", 0)])
def test_positions_start_where_the_model_starts_them(name: str, offset: int) -> None:
    denoiser = tiny_denoiser(name)
    assert denoiser.capabilities.position_offset == offset
    assert denoiser.facts.max_length == 40 - offset


def test_a_linear_head_is_recognised() -> None:
    assert tiny_denoiser("bert").capabilities.linear_head


def test_a_head_that_is_more_than_linear_is_recognised_and_used_as_it_is() -> None:
    class SquashedHead(nn.Linear):
        def forward(self, x):
            return 5 * torch.tanh(super().forward(x))

    model = randomise(BertForMaskedLM(BertConfig(tie_word_embeddings=False, **SHAPE)))
    old = model.cls.predictions.decoder
    new = SquashedHead(32, VOCABULARY).double().requires_grad_(False)
    new.load_state_dict(old.state_dict())
    model.cls.predictions.decoder = new
    denoiser = TransformersDenoiser(model, MASK_ID)
    assert not denoiser.capabilities.linear_head
    ids = random_words(12, [2, 5, 7])
    expected = model(input_ids=ids[None]).logits[0]

    ours = denoiser.predict(Canvas.of(ids), torch.tensor([[2, 5, 7]])).logits[0]
    words = [v for v in range(VOCABULARY) if v != MASK_ID]
    torch.testing.assert_close(ours[:, words], expected[[2, 5, 7]][:, words])


def test_mpnet_is_refused_because_it_never_calls_our_attention() -> None:
    with pytest.raises(UnsupportedModel, match=r"MPNetForMaskedLM .*attention"):
        TransformersDenoiser(MPNetForMaskedLM(MPNetConfig(**SHAPE)), MASK_ID)


@pytest.mark.parametrize(
    "model",
    [
        lambda: LlamaForCausalLM(
            LlamaConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2, **SHAPE)
        ),
        lambda: BertForMaskedLM(BertConfig(is_decoder=True, **SHAPE)),
    ],
    ids=["llama", "bert decoder"],
)
def test_causal_models_are_refused_and_told_what_to_set(model) -> None:
    with pytest.raises(ValueError, match=r"is causal: set config\.is_causal = False"):
        TransformersDenoiser(model(), MASK_ID)


def test_rows_that_mix_outside_attention_cannot_be_replayed_but_run_with_a_graph() -> None:
    denoiser = TransformersDenoiser(randomise(NeighbourMixingBert(BertConfig(**SHAPE))), MASK_ID)
    assert denoiser.capabilities.replay_refusal is not None
    canvas = random_words(12, [1, 2, 5, 7, 9, 11])
    with pytest.raises(
        UnsupportedModel,
        match=r"NeighbourMixingBert cannot be replayed .*rows .*attention.*"
        r"engine='late' or engine='dense'",
    ):
        generate(denoiser, canvas, BoE(rho=0.5, tolerance=None))
    options = {"rho": 0.5, "tolerance": None, "context": "full"}
    late = generate(denoiser, canvas, BoE(engine="late", **options))
    dense = generate(denoiser, canvas, BoE(engine="dense", **options))
    assert MASK_ID not in late.sequences[0].tolist()
    assert torch.equal(late.sequences[0], dense.sequences[0])
    assert late.total.n_backward > 0


def test_a_model_that_never_calls_its_head_is_refused() -> None:
    with pytest.raises(
        UnsupportedModel, match="HeadAsMatrixBert does not call its output embeddings as a module"
    ):
        TransformersDenoiser(HeadAsMatrixBert(BertConfig(**SHAPE)), MASK_ID)


def test_a_model_without_a_head_is_refused() -> None:
    model = randomise(BertForMaskedLM(BertConfig(**SHAPE)))
    with pytest.raises(UnsupportedModel, match="BertModel has no output embeddings"):
        TransformersDenoiser(model.bert, MASK_ID)


def test_embeddings_that_are_no_lookup_are_refused() -> None:
    model = randomise(BertForMaskedLM(BertConfig(**SHAPE)))
    table = model.bert.embeddings.word_embeddings
    odd = OffsetEmbedding(VOCABULARY, 32).double()
    odd.weight = table.weight
    model.bert.embeddings.word_embeddings = odd
    with pytest.raises(UnsupportedModel, match="not a lookup in a table"):
        TransformersDenoiser(model, MASK_ID)


def test_embeddings_with_a_scale_are_understood() -> None:
    class ScaledEmbedding(nn.Embedding):
        embed_scale = 3.0

        def forward(self, ids):
            return super().forward(ids) * self.embed_scale

    model = randomise(BertForMaskedLM(BertConfig(tie_word_embeddings=False, **SHAPE)))
    scaled = ScaledEmbedding(VOCABULARY, 32).double().requires_grad_(False)
    scaled.weight = model.bert.embeddings.word_embeddings.weight
    model.bert.embeddings.word_embeddings = scaled
    denoiser = TransformersDenoiser(model, MASK_ID)
    assert denoiser.capabilities.embedding_scale == 3.0
    assert torch.equal(denoiser.embedding_table, 3.0 * scaled.weight)
