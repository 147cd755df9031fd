"""Likelihoods by the Monte-Carlo bound of masked diffusion models.

log p(x | c) ≥ E_{l ~ U{1…n}} E_{masks of size l} (n / l) · Σ_{masked} log p(x_i | rest, c),
equation 6 of LLaDA (Nie et al., 2025). It is a bound: an estimate of it tells which of two
texts the model prefers, but is not their likelihood.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.decoding import Account, TokensPerStep, generate
from boe.decoding.draws import seeded
from boe.decoding.forwards import Forwards
from boe.denoisers import Denoiser, UnsupportedModel
from boe_kernels import pad_rows

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Passage:
    """Ids whose likelihood is asked, given the ids around them.

    Attributes:
        key: what the random draws depend on, beside the seed.
    """

    before: tuple[int, ...]
    scored: tuple[int, ...]
    after: tuple[int, ...]
    key: str

    def __post_init__(self) -> None:
        if not self.scored:
            raise ValueError("scored must hold at least one id, got none")


@dataclass(frozen=True)
class Likelihood:
    """An estimate of the bound.

    Attributes:
        log_probability: nats.
        is_greedy: whether greedy decoding writes the scored ids; False if not looked at.
        account: what it took.
    """

    log_probability: float
    is_greedy: bool
    account: Account


class LikelihoodEstimator:
    """Estimates bounds.

    Args:
        draws: sets of masks per passage. Their sizes are spread evenly over 1 … n from a
            random start, as LLaDA spreads those of a batch; here over all draws, so that
            the estimate does not depend on the batch size. For one id one draw is exact.
        guidance: w of classifier-free guidance.
        batch_size: draws in a forward.
        seed: with a passage's key fixes its draws.
        announce: told each passage before it is scored.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        draws: int = 128,
        guidance: float = 0.0,
        batch_size: int = 1,
        seed: int = 0,
        announce: Callable[..., None] | None = None,
    ) -> None:
        self.announce = announce
        self.denoiser, self.draws, self.guidance = denoiser, draws, guidance
        self.batch_size, self.seed = batch_size, seed
        self._forwards = Forwards(denoiser, guidance)

    def masks(self, length: int, key: str) -> Tensor:
        """bool (draws, length): which of the scored ids each draw masks."""
        draws = 1 if length == 1 else self.draws
        generator = seeded(f"{self.seed}/{key}/likelihood", torch.device("cpu"))
        start = int(torch.randint(length, (), generator=generator))
        sizes = (start + torch.arange(draws) * length // draws) % length + 1
        rank = torch.rand(draws, length, generator=generator, dtype=torch.float64).argsort(dim=1)
        return rank < sizes.unsqueeze(1)

    @torch.no_grad()
    def estimate(self, passage: Passage, check_greedy: bool = False) -> Likelihood:
        """The bound on the log-probability of ``passage.scored``.

        Raises:
            ValueError: an id that the model never writes, so that its probability is zero, or
                logits that are NaN.
            UnsupportedModel: the model is block-causal: its bound is a sum over blocks, each
            given the unmasked ones before it, which these draws are not.
        """
        if self.announce is not None:
            self.announce("estimate", passage, check_greedy)
        if self.denoiser.facts.block_length is not None:
            raise UnsupportedModel(
                "the likelihood of a block-causal model is bounded block by block, which is not "
                "implemented: masks in several blocks at once would bound something else"
            )
        began = time.perf_counter()
        never = set(passage.scored) & set(self.denoiser.facts.suppressed_ids)
        if never:
            raise ValueError(
                f"the text holds the id {min(never)}, which the model never writes: its "
                "likelihood is zero"
            )
        chosen = self.masks(len(passage.scored), passage.key)
        parts = [
            value
            for start in range(0, len(chosen), self.batch_size)
            for value in halving(
                lambda rows: self._weighted(passage, torch.stack(list(rows))),
                list(chosen[start : start + self.batch_size]),
            )
        ]
        account = Account(nfe_forward=float(len(chosen) * self._forwards.passes))
        account.flop_equiv = account.nfe_forward
        if any(math.isnan(value) for value in parts):
            raise ValueError("the model's logits are NaN")
        greedy = False
        if check_greedy:
            greedy, spent = self._is_greedy(passage)
            account.nfe_forward += spent.nfe_forward
            account.flop_equiv += spent.flop_equiv
        account.seconds = time.perf_counter() - began
        return Likelihood(sum(parts) / len(parts), greedy, account)

    def _weighted(self, passage: Passage, masks: Tensor) -> list[float]:
        """(n / l) · Σ log p over each row of ``masks`` (b, n)."""
        device, mask_id = self.denoiser.device, self.denoiser.facts.mask_id
        whole = torch.tensor([*passage.before, *passage.scored, *passage.after], device=device)
        first, last = len(passage.before), len(passage.before) + len(passage.scored)
        masked = torch.zeros(len(masks), len(whole), dtype=torch.bool, device=device)
        masked[:, first:last] = masks.to(device)
        given = torch.ones_like(masked)
        given[:, first:last] = False
        ids = torch.where(masked, mask_id, whole)
        positions = pad_rows(masked)
        canvas = Canvas(ids, (len(whole),) * len(masks))
        logits = self._forwards.predict(canvas, given, positions).logits
        logits = logits if logits.dtype == torch.float64 else logits.float()
        targets = whole[positions.clamp_min(0)].unsqueeze(-1)
        log_p = logits.gather(-1, targets).squeeze(-1) - logits.logsumexp(dim=-1)
        total = torch.where(positions >= 0, log_p, 0.0).double().sum(dim=1)
        values: list[float] = (total * masks.shape[1] / masked.sum(dim=1)).tolist()
        return values

    def _is_greedy(self, passage: Passage) -> tuple[bool, Account]:
        """Whether decoding token by token, surest first, writes the scored ids."""
        masks = [self.denoiser.facts.mask_id] * len(passage.scored)
        canvas = torch.tensor(
            [*passage.before, *masks, *passage.after], device=self.denoiser.device
        )
        item = generate(
            self.denoiser,
            canvas,
            "confidence",
            budget=TokensPerStep(1),
            temperature=0.0,
            guidance=self.guidance,
        ).items[0]
        first = len(passage.before)
        written = item.ids[first : first + len(masks)].tolist()
        return written == list(passage.scored), item.account


def windows(
    ids: Sequence[int],
    opening: Sequence[int],
    closing: Sequence[int],
    longest: int | None,
    key: str,
) -> list[Passage]:
    """A text as passages of at most ``longest`` ids, special ones included.

    Each id is scored once. The last passage begins as early as fits, so that what it scores
    has the most context; the others have none but their own.
    """
    room = len(ids) if longest is None else longest - len(opening) - len(closing)
    if room < 1:
        raise ValueError(f"max_length = {longest} leaves no room for a text")
    passages = []
    for number, start in enumerate(range(0, len(ids), room)):
        end = min(start + room, len(ids))
        context = ids[max(0, end - room) : start]
        before = (*opening, *context)
        passages.append(Passage(before, tuple(ids[start:end]), tuple(closing), f"{key}/{number}"))
    return passages


def halving(run: Callable[[Sequence[T]], list[R]], items: Sequence[T]) -> list[R]:
    """``run(items)``, in halves where the device has not the memory for all.

    Raises:
        torch.OutOfMemoryError: not even one fits.
    """
    try:
        return run(items)
    except torch.OutOfMemoryError:
        if len(items) == 1:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (len(items) + 1) // 2
    return halving(run, items[:middle]) + halving(run, items[middle:])
