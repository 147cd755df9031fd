"""The decoding loop's front door: check what is asked, and decode batch by batch."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boe import defaults
from boe.arguments import check_number, check_whole, token_ids
from boe.canvas import Canvas
from boe.decoding.decoder import Decoder
from boe.decoding.forwards import Forwards
from boe.decoding.kv_cache import check_cache
from boe.decoding.particle_gibbs import decode_gibbs
from boe.decoding.proofreading import check_proofreading
from boe.decoding.records import Generation, Item
from boe.decoding.rows import Row, blocks_of
from boe.decoding.setbacks import Failures, check_failures
from boe.decoding.smc import decode_smc
from boe.decoding.stopping import check_patterns
from boe.denoisers.base import Denoiser, DenoiserFacts
from boe.samplers.base import Policy, Sampler
from boe.samplers.budgets import Budget, TokensPerStep
from boe.samplers.caching import KVCacheName
from boe.samplers.particles import SMC, ParticleGibbs
from boe.samplers.specs import strategy_from
from boe.samplers.strategy import Strategy
from boe.samplers.tokens import Tokens


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    canvas: Canvas | Tensor | Sequence[Tensor],
    sampler: Policy | Strategy | str = defaults.SAMPLER,
    *,
    budget: Budget | None = None,
    block_length: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    guidance: float = 0.0,
    suppress: Sequence[int] = (),
    delay: Sequence[int] = (),
    stop: Sequence[Sequence[int]] = (),
    stop_when: Callable[[int, list[int]], int | None] | None = None,
    seed: int = 0,
    item_ids: Sequence[int | str] | None = None,
    batch_size: int | None = None,
    trajectory: bool = False,
    on_step: Callable[[int, Item], None] | None = None,
    failures: Failures = "raise",
    kv_cache: KVCacheName | None = None,
    cache_refresh: int | None = None,
) -> Generation:
    """Fill in the masked tokens of a canvas.

    Any pattern of masks is allowed, so infilling needs nothing special; tokens that are
    not masked at the start never change. Tokens once written stay, unless the strategy
    takes some back.

    Args:
        denoiser: the model.
        canvas: sequences of int64 ids that hold the model's mask id, of any lengths, on
            the model's device.
        sampler: a strategy, or its specification (:func:`boe.samplers.sampler_from`). By default
            (:data:`boe.defaults.SAMPLER`) nearly certain tokens go at once, whatever the
            budget; ``"boe"`` keeps to it.
        budget: tokens per step; one by default. Adaptive counts reveal at least as many;
            policies with a time of their own take as many steps as it plans.
        block_length: decode block by block from the first mask on (semi-autoregressive):
            only masks of the current block may be revealed. A block-causal model is always
            decoded in its own blocks, counted from position 0.
        temperature: 0 writes the most probable token; above, tokens are drawn from
            softmax(z / temperature) by float64 Gumbel noise. By default what the strategy
            says: 0 for all that rank, 1 for MaskGIT, P2 and ancestral samplers.
        top_p: draw from the nucleus of this probability only.
        guidance: w of classifier-free guidance (:class:`boe.decoding.forwards.Forwards`);
            forwards then count twice.
        suppress: ids that are never written.
        delay: ids whose positions are revealed after all others (LLaDA's "EOS confidence
            0"), for strategies that rank positions.
        stop: patterns of ids. A sequence ends once everything up to and including a
            pattern is written; its item's ``end`` says where, and masks may stay behind it.
        stop_when: for ends that are no patterns of ids, such as a text that can be
            tokenised in several ways. Asked after each step for each sequence, with its
            index and its ids up to the first mask, for the length at which it ends, or
            ``None``. Copies the canvas to the host at every step.
        seed: with ``item_ids`` fixes all random draws: a sequence gets the same draws
            whatever else is in its batch.
        item_ids: a number or a text per sequence, by default 0, 1, 2 …
        batch_size: sequences decoded together; all by default. A batch that does not fit
            into the device's memory goes on in halves, with the same results.
        trajectory: keep a record of every step.
        on_step: called after each step for each sequence of the batch with its index
            and its item so far; of particles, for the first one. ``item.final`` tells how
            much of it will not change any more.
        failures: "raise" ends the decode when a sequence fails: its logits are NaN or allow
            no token, it makes no progress, or it does not fit into memory by itself. "keep"
            ends that sequence only and puts the error into its item's ``error``. Not with
            particles.
        kv_cache: which keys and values a step takes from those before it. "none" runs the
            whole canvas at every step. "exact", for block-causal models, keeps those of the
            prompt and of blocks that are done, and runs no row behind the current block: the
            same logits up to rounding. Two approximations are for all other models: "prefix"
            keeps, while a block is decoded, those in front of it as they were at the block's
            first step (Fast-dLLM, arXiv:2505.22618); "delayed" keeps those of every token
            from the forward after its writing on, and runs the masked rows and those whose
            tokens have just changed (dKV-Cache, arXiv:2505.15781). By default what the
            strategy says, or "none". Forwards of some rows count whole in ``nfe_forward`` and
            as a share of the canvas in ``flop_equiv``. Not with bridge rows and engines
            other than replay.
        cache_refresh: with "prefix" and "delayed": every so many forwards of a sequence run
            its whole canvas anew; by default only those that have to, of "delayed" the first.

    Returns:
        Generation: one item per sequence, in order.

    Raises:
        ValueError: nothing to decode, a canvas that the model cannot take, options that do
            not go together, or logits that are NaN or allow no token; the message names
            the sequence and position.
        TypeError: an argument of another kind than it says here.
        RuntimeError: a sequence whose strategy reveals nothing, step after step.
        torch.OutOfMemoryError: a sequence does not fit into memory by itself.
    """
    call = prepare(
        denoiser,
        sampler,
        budget=budget,
        block_length=block_length,
        temperature=temperature,
        top_p=top_p,
        guidance=guidance,
        suppress=suppress,
        delay=delay,
        stop=stop,
        stop_when=stop_when,
        seed=seed,
        on_step=on_step,
        failures=failures,
        kv_cache=kv_cache,
        cache_refresh=cache_refresh,
    )
    if batch_size is not None:
        check_whole("batch_size", batch_size)
    canvas = Canvas.of(canvas)
    keys = _keys(item_ids, canvas.batch)
    _check_ids(denoiser, canvas)
    facts, strategy = denoiser.facts, call.decoder.strategy
    items: list[Item] = []
    size = batch_size or canvas.batch
    for start in range(0, canvas.batch, size):
        numbers = range(start, min(start + size, canvas.batch))
        part = canvas.select(numbers)
        masked = part.masked(facts.mask_id)
        rows = [
            Row(
                Item(ids, trajectory=[] if trajectory else None),
                number,
                keys[number],
                given=~where[: len(ids)],
                masks=int(on_host.sum()),
                blocks=blocks_of(
                    *(on_host, call.budget, call.block_length),
                    *(strategy, facts.block_length is not None),
                ),
            )
            for number, ids, where, on_host in zip(
                numbers, part.sequences(), masked, masked.cpu(), strict=True
            )
        ]
        if strategy.particles is None:
            call.decoder.run(rows)
            items += [row.item for row in rows]
        elif isinstance(strategy.particles, SMC):
            items += decode_smc(call.decoder, rows, strategy.particles)
        else:
            assert isinstance(strategy.particles, ParticleGibbs)
            items += decode_gibbs(call.decoder, rows, strategy.particles)
    return Generation(items)


@dataclass(frozen=True)
class Call:
    """What :func:`generate` is asked of any sequences.

    Attributes:
        block_length: of the blocks to decode; one for all if ``None``.
    """

    decoder: Decoder
    budget: Budget
    block_length: int | None


def prepare(
    denoiser: Denoiser,
    sampler: Policy | Strategy | str = defaults.SAMPLER,
    *,
    budget: Budget | None = None,
    block_length: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    guidance: float = 0.0,
    suppress: Sequence[int] = (),
    delay: Sequence[int] = (),
    stop: Sequence[Sequence[int]] = (),
    stop_when: Callable[[int, list[int]], int | None] | None = None,
    seed: int = 0,
    on_step: Callable[[int, Item], None] | None = None,
    failures: Failures = "raise",
    kv_cache: KVCacheName | None = None,
    cache_refresh: int | None = None,
) -> Call:
    """The checks of :func:`generate` that need no sequence: whatever is wrong here is wrong with
    every one.

    Raises:
        ValueError, TypeError: as :func:`generate`.
    """
    if not hasattr(denoiser, "facts"):
        raise TypeError(
            "denoiser must be a Denoiser, such as load_model(...).denoiser, "
            f"got {type(denoiser).__name__}"
        )
    strategy = strategy_from(sampler)
    for ruled in strategy.ruled:
        ruled.checked()
    budget = TokensPerStep(1) if budget is None else budget
    if not isinstance(budget, Budget):
        raise TypeError(
            f"budget must be a Budget such as TokensPerStep(3), got {type(budget).__name__}"
        )
    check_whole("seed", seed, least=None)
    tokens = strategy.writing(temperature, top_p)
    if block_length is not None:
        check_whole("block_length", block_length)
    check_number("guidance", guidance)
    if not (guidance >= 0.0 and math.isfinite(guidance)):
        raise ValueError(f"guidance must be finite and not negative, got {guidance}")
    facts = denoiser.facts
    block_length = _own_blocks(facts, block_length)
    cache = strategy.cached(kv_cache, cache_refresh)
    check_cache(cache, facts, strategy.keep)
    check_proofreading(strategy.proofread, denoiser)
    suppress = token_ids("suppress", suppress, facts.vocab_size)
    if len({*suppress, facts.mask_id}) == facts.vocab_size:
        raise ValueError(f"suppress leaves none of the {facts.vocab_size} ids to be written")
    delay = token_ids("delay", delay, facts.vocab_size)
    if delay and not isinstance(strategy.which, Sampler):
        raise ValueError(
            f"delay needs a policy that ranks positions, got {strategy.which.name}; "
            "suppress works with any"
        )
    _check_particles(strategy, tokens, facts, block_length)
    check_failures(failures)
    if failures == "keep" and strategy.particles is not None:
        raise ValueError("failures='keep' does not go with particles, which share their fate")
    decoder = Decoder(
        Forwards(denoiser, guidance, suppress, strategy.which.combines),
        strategy,
        tokens,
        seed,
        delayed=delay,
        stop=check_patterns(stop, facts.vocab_size, facts.mask_id),
        stop_when=stop_when,
        on_step=on_step,
        cache=cache,
        failures=failures,
    )
    return Call(decoder, budget, block_length)


def _keys(item_ids: Sequence[int | str] | None, batch: int) -> list[str]:
    """What the draws of each sequence depend on besides the seed."""
    if item_ids is None:
        return [str(number) for number in range(batch)]
    try:
        found = [key if isinstance(key, str) else str(operator.index(key)) for key in item_ids]
    except TypeError:
        raise TypeError(f"item_ids must hold whole numbers or texts, got {item_ids!r}") from None
    if len(found) != batch:
        raise ValueError(f"item_ids must number {batch} sequences, got {len(found)}")
    return found


def _own_blocks(facts: DenoiserFacts, block_length: int | None) -> int | None:
    """The length of the blocks to decode: a block-causal model's own, or as asked."""
    own = facts.block_length
    if own is not None and block_length not in (None, own):
        raise ValueError(
            f"block_length must be {own} or left out: the model is block-causal in blocks of "
            f"{own}, got {block_length}"
        )
    return block_length if own is None else own


def _check_particles(
    strategy: Strategy, tokens: Tokens, facts: DenoiserFacts, block_length: int | None
) -> None:
    particles = strategy.particles
    if particles is None:
        return
    if tokens.temperature == 0.0 and not strategy.which.stochastic:
        raise ValueError(
            f"particles of {strategy.which.name} at temperature 0 would all be the same; "
            "give a temperature above 0"
        )
    if isinstance(particles, ParticleGibbs) and facts.block_length is not None:
        raise ValueError(
            "particle Gibbs completes the whole canvas from one prediction, which a block-causal "
            "model does not give: it predicts one block after the other"
        )
    if particles.every is None and block_length is None:
        raise ValueError(
            "particles are resampled at the ends of blocks: give block_length, or every"
        )


def _check_ids(denoiser: Denoiser, canvas: Canvas) -> None:
    facts = denoiser.facts
    if canvas.ids.device != denoiser.device:
        raise ValueError(
            f"canvas must be on the model's device {denoiser.device}, got {canvas.ids.device}"
        )
    low, high = int(canvas.ids.min()), int(canvas.ids.max())
    if low < 0 or high >= facts.vocab_size:
        raise ValueError(
            f"canvas must hold ids in [0, {facts.vocab_size}), got {low if low < 0 else high}"
        )
    if not bool(canvas.masked(facts.mask_id).any()):
        raise ValueError(f"canvas holds no mask token (id {facts.mask_id}): nothing to decode")
