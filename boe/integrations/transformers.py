"""``model.generate(..., custom_generate=boe_generate)``: transformers' own entry point.

The model must be bidirectional (``config.is_causal = False``) and run its attention through
transformers' interface, as the models behind :func:`boe.load_model` do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from boe import defaults
from boe.decoding import FrontLoaded, Item, TokensPerStep, generate
from boe.denoisers.base import Denoiser
from boe.denoisers.transformers_model import TransformersDenoiser
from boe.samplers import Policy, Strategy, strategy_from
from boe.samplers.caching import KVCacheName
from boe.text.tokenization import Texts, stop_rule

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        LogitsProcessorList,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        StoppingCriteriaList,
    )

# What `generate` itself adds for settings that are read from the generation config here.
_KNOWN_PROCESSORS = ("TemperatureLogitsWarper", "TopPLogitsWarper")
_KNOWN_CRITERIA = ("MaxLengthCriteria", "EosTokenCriteria", "StopStringCriteria")
_IGNORED_INPUTS = (
    "attention_mask",
    "position_ids",
    "past_key_values",
    "cache_position",
    "logits_to_keep",
    "use_cache",
    "next_sequence_length",
)


def boe_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    synced_gpus: bool = False,
    streamer: Any = None,
    sampler: str | Policy | Strategy = defaults.SAMPLER,
    steps: int | None = None,
    block_length: int | None = None,
    guidance: float = 0.0,
    suppress: Sequence[int] = (),
    delay: Sequence[int] = (),
    seed: int = 0,
    batch_size: int | None = None,
    kv_cache: KVCacheName | None = None,
    cache_refresh: int | None = None,
    stop_texts: Sequence[str] = (),
    text_tokenizer: PreTrainedTokenizerBase | None = None,
    draft_streamer: Any = None,
    mask_token_id: int | None = None,
    logits_shift: int = 0,
    denoiser: Denoiser | None = None,
    **model_kwargs: Any,
) -> Any:
    """Fill in ``max_new_tokens`` masks behind each prompt, and masks within it.

    To be given to ``model.generate`` as ``custom_generate``; every keyword from ``sampler``
    on is a keyword of that call. Of the generation config are read: the lengths,
    ``do_sample`` with ``temperature`` and ``top_p`` (transformers' nucleus),
    ``eos_token_id``, ``pad_token_id`` and ``return_dict_in_generate``. Padded prompts give
    what they would give alone. The model's attention implementation, training mode and
    ``requires_grad`` flags are as before afterwards.

    transformers hands neither ``streamer`` nor ``tokenizer`` on to a callable, and without
    the latter refuses ``stop_strings``: give ``draft_streamer``, ``stop_texts`` and
    ``text_tokenizer`` in their place.

    Args:
        sampler, block_length, guidance, suppress, delay, seed, batch_size, kv_cache,
            cache_refresh: as in :func:`boe.generate`.
        steps: decoding steps; one token per step by default.
        stop_texts: end a row once everything up to and including one of them is written;
            what is cut off is the following, not the stop text.
        text_tokenizer: of the model, for ``stop_texts``.
        draft_streamer: a streamer of transformers, for one prompt: gets the prompt, ids as
            they become final, and, if it has ``put_draft``, the rest of the canvas after
            each step.
        mask_token_id: id of the mask token, where ``config.mask_token_id`` does not say.
        logits_shift: −1 if row j − 1 of the logits predicts position j (Dream).
        denoiser: made from the model already, such as ``boe.load_model(...).denoiser``:
            saves finding out anew what the model can do.

    Returns:
        Tensor: int64 (B, L), prompts and what was written, padded behind the end; or
        transformers' ``GenerateDecoderOnlyOutput`` if the generation config asks for it.

    Raises:
        ValueError: no mask token, or settings that have no meaning here, by name.
        UnsupportedModel: a model that cannot be used, such as a causal one.
    """
    _refuse(logits_processor, stopping_criteria, generation_config, model_kwargs, synced_gpus)
    if draft_streamer is not None and len(input_ids) > 1:
        raise ValueError(f"draft_streamer takes one prompt, got {len(input_ids)}")
    config = generation_config
    eos, pad = _ids_of(config.eos_token_id), _ids_of(config.pad_token_id)
    new = config.max_length - input_ids.shape[1]
    with _denoising(model, mask_token_id, logits_shift, denoiser) as ready:
        mask_id = ready.facts.mask_id
        seen = _seen(input_ids, model_kwargs.get("attention_mask"))
        prompts = [ids[where].to(ready.device) for ids, where in zip(input_ids, seen, strict=True)]
        masks = torch.full((new,), mask_id, device=ready.device)
        spans = [range(len(prompt), len(prompt) + new) for prompt in prompts]
        # In a gap the end of text is a token like any other.
        gaps = any(bool((prompt == mask_id).any()) for prompt in prompts)
        telling = _Telling(draft_streamer, len(prompts[0]))
        if draft_streamer is not None:
            draft_streamer.put(prompts[0].cpu())
        items = generate(
            ready,
            [torch.cat((prompt, masks)) for prompt in prompts],
            strategy_from(sampler).with_nucleus("reaching"),
            budget=TokensPerStep(1) if steps is None else FrontLoaded(steps),
            block_length=block_length,
            temperature=config.temperature if config.do_sample else None,
            top_p=config.top_p if config.do_sample else None,
            guidance=guidance,
            suppress=suppress,
            delay=delay,
            stop=[] if gaps else [(token,) for token in eos if token < ready.facts.vocab_size],
            stop_when=_stop_rule(stop_texts, text_tokenizer, mask_id, spans, eos if gaps else []),
            seed=seed,
            batch_size=batch_size,
            kv_cache=kv_cache,
            cache_refresh=cache_refresh,
            on_step=None if draft_streamer is None else telling,
        ).items
    if draft_streamer is not None:
        telling.close(items[0])
    filler = pad[0] if pad else (eos[0] if eos else 0)
    sequences = _joined(input_ids, seen, prompts, items, filler)
    if not config.return_dict_in_generate:
        return sequences
    from transformers.generation import GenerateDecoderOnlyOutput

    return GenerateDecoderOnlyOutput(sequences=sequences)


class _Telling:
    """Hands ids to a streamer as they become final, and drafts to one that takes them."""

    def __init__(self, streamer: Any, start: int) -> None:
        self._streamer, self._told = streamer, start

    def __call__(self, number: int, item: Item) -> None:
        self._put(item, item.final)
        if self._told < len(item.ids) and hasattr(self._streamer, "put_draft"):
            self._streamer.put_draft(item.ids[self._told :].cpu())

    def close(self, item: Item) -> None:
        self._put(item, len(item.ids) if item.end is None else item.end)
        self._streamer.end()

    def _put(self, item: Item, until: int) -> None:
        if until > self._told:
            self._streamer.put(item.ids[self._told : until].cpu())
            self._told = until


@contextmanager
def _denoising(
    model: PreTrainedModel, mask_token_id: int | None, logits_shift: int, denoiser: Denoiser | None
) -> Iterator[Denoiser]:
    """The model as a denoiser; what that changes about the model is undone afterwards."""
    if denoiser is not None:
        yield denoiser
        return
    mask_id = _mask_id(mask_token_id, model)
    attention, training = model.config._attn_implementation, model.training
    flags = [parameter.requires_grad for parameter in model.parameters()]
    try:
        yield TransformersDenoiser(model, mask_id, logits_shift=logits_shift)
    finally:
        model.set_attn_implementation(attention)
        model.train(training)
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)


def _mask_id(given: int | None, model: PreTrainedModel) -> int:
    found = getattr(model.config, "mask_token_id", None) if given is None else given
    if found is None:
        raise ValueError("mask_token_id must be given: the model's config has none")
    return int(found)


def _refuse(
    processors: Sequence[Any],
    criteria: Sequence[Any],
    config: GenerationConfig,
    model_kwargs: dict[str, Any],
    synced_gpus: bool,
) -> None:
    """Raises a ValueError for what would otherwise be left out silently."""
    for what, given, known in (
        ("logits processor", processors, _KNOWN_PROCESSORS),
        ("stopping criterion", criteria, _KNOWN_CRITERIA),
    ):
        for each in given:
            if type(each).__name__ not in known:
                kind = type(each).__name__
                # It is transformers' own default, so that nobody may have asked for it.
                how = " (top_k=0)" if kind == "TopKLogitsWarper" else ""
                raise ValueError(
                    f"boe_generate does not support the {what} {kind}; unset the option that asks "
                    f"for it{how}"
                )
    if config.num_beams != 1:
        raise ValueError(f"boe_generate has no beams, got num_beams={config.num_beams}")
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        if getattr(config, name, None):
            raise ValueError(f"boe_generate does not support {name}=True")
    unknown = [
        name
        for name, value in model_kwargs.items()
        if name not in _IGNORED_INPUTS and value is not None
    ]
    if unknown:
        raise ValueError(f"boe_generate does not take the model inputs {', '.join(unknown)}")
    if synced_gpus:
        raise ValueError("boe_generate does not support synced_gpus: steps differ between ranks")


def _stop_rule(
    stop_texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None,
    mask_id: int,
    spans: list[range],
    ends: list[int],
) -> Callable[[int, list[int]], int | None] | None:
    """Where a row ends by its text or by one of ``ends``, if there is any of them."""
    if isinstance(stop_texts, str):
        raise TypeError("stop_texts must be a sequence of texts, got one text")
    if not stop_texts:
        return stop_rule(spans, ends) if ends else None
    if tokenizer is None:
        raise ValueError("stop_texts need text_tokenizer")
    return stop_rule(spans, ends, stop_texts, Texts(tokenizer, mask_id))


def _seen(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """bool (B, L), True at tokens that are no padding."""
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    return attention_mask.to(input_ids.device).bool()


def _joined(
    input_ids: Tensor, seen: Tensor, prompts: Sequence[Tensor], items: Sequence[Item], filler: int
) -> Tensor:
    """Prompts where they stood, filled in, and what was written behind the widest of them."""
    width = input_ids.shape[1]
    written = [
        item.ids[len(prompt) : len(item.ids) if item.end is None else max(item.end, len(prompt))]
        for prompt, item in zip(prompts, items, strict=True)
    ]
    whole = input_ids.new_full((len(items), width + max(map(len, written))), filler)
    whole[:, :width] = input_ids
    for row, (prompt, item, more) in enumerate(zip(prompts, items, written, strict=True)):
        whole[row, :width][seen[row]] = item.ids[: len(prompt)].to(whole.device)
        whole[row, width : width + len(more)] = more.to(whole.device)
    return whole


def _ids_of(value: Any) -> list[int]:
    if value is None:
        return []
    if isinstance(value, Tensor):
        return [int(token) for token in value.flatten().tolist()]
    return [int(token) for token in value] if isinstance(value, list | tuple) else [int(value)]
