"""Backward-on-Entropy in diffusers' block-refinement pipelines (``LLaDA2Pipeline``).

Needs the extra ``diffusers``. A pipeline's scheduler sees logits only, and a gradient needs
the model. So there are two parts: :class:`DenoiserModel` stands in for the pipeline's model
and keeps its last prediction, from which :class:`BoEScheduler` makes a step of a decoding
strategy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

try:
    from diffusers import BlockRefinementScheduler
    from diffusers.configuration_utils import register_to_config
    from diffusers.schedulers.scheduling_block_refinement import BlockRefinementSchedulerOutput
except ImportError as error:
    raise ImportError(
        "boe.integrations.diffusers needs diffusers: "
        "pip install '.[diffusers]' in a checkout of boe"
    ) from error

from boe.canvas import Canvas
from boe.decoding.draws import seeded
from boe.decoding.forwards import Forwards
from boe.denoisers.base import Denoiser, Keep, Prediction
from boe.denoisers.loading import LoadedModel
from boe.samplers import Sampler, Tokens, strategy_from
from boe.samplers.memory import Memory
from boe.samplers.step import Clock, Step
from boe.samplers.tokens import propose
from boe_kernels import pad_rows


@dataclass(frozen=True)
class ModelOutput:
    """What a pipeline reads of a model: logits (B, L, V), zeros at observed positions."""

    logits: Tensor


@dataclass(frozen=True)
class _Seen:
    """The model's last call: the ids (B, L), which are no padding, and what came of it."""

    ids: Tensor
    valid: Tensor
    prediction: Prediction | None


class DenoiserModel(nn.Module):
    """A denoiser in the place of a pipeline's model.

    Padding may be on either side. Logits are computed at masked positions only.

    Args:
        denoiser: the model.
        keep: what predictions keep for a gradient: that of the scheduler's strategy.
    """

    def __init__(self, denoiser: Denoiser, keep: Keep = "nothing") -> None:
        super().__init__()
        self.denoiser, self.keep = denoiser, keep
        self.last: _Seen | None = None

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.embedding_table.dtype

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> ModelOutput:
        """Logits of ``input_ids`` (B, L); ``attention_mask`` (B, L) is 0 at padding.

        ``position_ids`` are not read: positions are counted from a row's first token.

        Raises:
            ValueError: a mask of another shape, or a row of padding alone.
        """
        valid = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:
            if attention_mask.shape != input_ids.shape:
                raise ValueError(
                    f"attention_mask must have shape {tuple(input_ids.shape)}, got "
                    f"{tuple(attention_mask.shape)}"
                )
            valid = attention_mask.bool()
        canvas = Canvas.of([ids[seen] for ids, seen in zip(input_ids, valid, strict=True)])
        facts = self.denoiser.facts
        positions = pad_rows(canvas.masked(facts.mask_id))
        prediction = None
        logits = torch.zeros(
            *input_ids.shape, facts.vocab_size, dtype=self.dtype, device=input_ids.device
        )
        if positions.shape[1]:
            prediction = self.denoiser.predict(canvas, positions, self.keep)
            masked = (input_ids == facts.mask_id) & valid
            logits[masked] = prediction.logits[positions >= 0].to(self.dtype)
        self.last = _Seen(input_ids.clone(), valid, prediction)
        return ModelOutput(logits)


class BoEScheduler(BlockRefinementScheduler):
    """Block refinement in which a decoding strategy chooses what to commit.

    Each step commits as many tokens as the schedule shares out evenly, or more if the
    strategy has a count (``boe+eb:gamma=0.1``). The pipeline's ``threshold`` and
    ``minimal_topk`` are not read: that is the count's part. Tokens are never edited.

    Args:
        block_length, num_inference_steps: as in ``BlockRefinementScheduler``.
        sampler: the specification of a ranking sampler, with a count or not.
        seed: of the draws, where the pipeline is given no generator.

    Raises:
        ValueError: a strategy that takes tokens back, does not rank, or has particles, a cache,
            a deadline or backtracking.
    """

    @register_to_config
    def __init__(
        self,
        block_length: int = 32,
        num_inference_steps: int = 32,
        sampler: str = "boe",
        seed: int = 0,
        threshold: float = 1.0,
        editing_threshold: float | None = None,
        minimal_topk: int = 1,
    ) -> None:
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps - 1, -1, -1, dtype=torch.long)
        self._transfer_schedule = None
        self._committed = None
        if editing_threshold is not None:
            raise ValueError(f"editing_threshold must be None, got {editing_threshold}")
        self.strategy = strategy_from(sampler)
        if not isinstance(self.strategy.which, Sampler) or self.strategy.takes_back:
            raise ValueError(f"sampler must rank positions and take none back, got {sampler!r}")
        for part in ("particles", "cache", "deadline", "backtrack"):
            if getattr(self.strategy, part) is not None:
                raise ValueError(f"a scheduler has no {part}, got sampler={sampler!r}")
        self._model: DenoiserModel | None = None
        self._memory = Memory()
        self._masks: list[int] = []

    def bind(self, model: DenoiserModel) -> BoEScheduler:
        """Steer with this model, which must also be the pipeline's."""
        model.keep = self.strategy.keep
        self._model = model
        return self

    @torch.no_grad()
    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        mask_token_id: int | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        sampling_method: str = "auto",
        threshold: float | None = None,
        editing_threshold: float | None = None,
        minimal_topk: int | None = None,
        prompt_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """One refinement step of the last ``sample.shape[1]`` positions of the canvas.

        Raises:
            RuntimeError: no model is bound, or it was not the one that gave the logits.
            ValueError: options of the pipeline that have no meaning here.
        """
        seen = self._last_call(sample)
        assert self._model is not None
        facts = self._model.denoiser.facts
        if mask_token_id != facts.mask_id:
            raise ValueError(f"mask_token_id must be {facts.mask_id}, got {mask_token_id}")
        if editing_threshold is not None and editing_threshold > 0.0:
            raise ValueError("tokens are not edited: give the pipeline editing_threshold=None")
        if top_k:
            raise ValueError(f"top_k is not supported, got {top_k}; give top_p")
        block = sample.shape[1]
        masked = (sample == facts.mask_id) & seen.valid[:, -block:]
        tokens, probability = torch.zeros_like(sample), model_output.new_zeros(sample.shape)
        commit = torch.zeros_like(masked)
        if bool(masked.any()):
            greedy = sampling_method == "greedy" or temperature == 0.0
            nucleus = 1.0 if top_p is None or greedy else top_p
            written = Tokens(0.0 if greedy else temperature, nucleus, "reaching")
            commit, tokens, probability = self._commit(
                seen, masked, int(timestep), written, generator
            )
        # Behind the text the last block is filled up with masks, which are cut off later.
        spare = (sample == facts.mask_id) & ~seen.valid[:, -block:]
        filler = int(facts.mask_id == 0)
        tokens = torch.where(spare, filler, tokens)
        commit = commit | spare
        output = BlockRefinementSchedulerOutput(
            prev_sample=torch.where(commit, tokens, sample),
            transfer_index=commit,
            editing_transfer_index=torch.zeros_like(commit),
            sampled_tokens=tokens,
            sampled_probs=probability,
            pred_logits=model_output,
        )
        return output if return_dict else tuple(output.values())

    def _last_call(self, sample: Tensor) -> _Seen:
        model = self._model
        if model is None or model.last is None:
            raise RuntimeError("bind the scheduler to the pipeline's DenoiserModel first")
        seen = model.last
        if not torch.equal(seen.ids[:, -sample.shape[1] :], sample):
            raise RuntimeError("the logits are not those of the bound model's last call")
        return seen

    def _commit(
        self,
        seen: _Seen,
        masked: Tensor,
        index: int,
        tokens: Tokens,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Which of the block's positions to commit, what with, and its probability."""
        assert self._model is not None
        assert seen.prediction is not None
        if index == 0:
            self._memory = Memory()
        step = self._step(seen, masked, index, tokens, generator)
        move = self.strategy.move(step)
        self._memory = step.memory
        # From slots of canvases without padding back to the block's positions.
        block, width = masked.shape[1], seen.ids.shape[1]
        place = pad_rows(seen.valid).gather(1, step.positions.clamp_min(0)) - (width - block)
        inside = (step.positions >= 0) & (place >= 0)
        target = torch.where(inside, place, block)

        def onto_block(values: Tensor) -> Tensor:
            spare = values.new_zeros(len(values), block + 1)
            return spare.scatter_(1, target, values)[:, :-1]

        return (
            onto_block(move.reveal),
            onto_block(move.tokens),
            onto_block(step.proposal_probability),
        )

    def _step(
        self,
        seen: _Seen,
        masked: Tensor,
        index: int,
        tokens: Tokens,
        generator: torch.Generator | None,
    ) -> Step:
        model, prediction = self._model, seen.prediction
        assert model is not None
        assert prediction is not None
        canvas, device = prediction.canvas, masked.device
        # Both walk a row's masks from left to right; those of the block are its last ones.
        left = masked.sum(dim=1)
        slots = prediction.positions >= 0
        place = torch.arange(slots.shape[1], device=device)
        eligible = slots & (place >= (slots.sum(dim=1) - left).unsqueeze(1))
        counts: list[int] = left.tolist()
        if index == 0:
            self._masks = counts
        plan = self._plan()
        budget = [min(plan[min(index, len(plan) - 1)], count) for count in counts]
        lengths = torch.tensor(canvas.lengths, device=device)
        clocks = tuple(
            Clock(
                index=index,
                total=self.num_inference_steps,
                planned=self.num_inference_steps,
                change=change,
                left=count,
                masks=masks,
                start=max(length - masked.shape[1], 0),
                end=length,
                plan=plan,
            )
            for change, count, masks, length in zip(
                budget, counts, self._masks, canvas.lengths, strict=True
            )
        )
        rows = range(len(counts))
        generators = [
            generator or seeded(f"{self.config.seed}/{row}/{index}/{canvas.length}", device)
            for row in rows
        ]
        proposal = propose(prediction, tokens, generators, self.strategy.which.noised)
        nowhere = torch.zeros_like(canvas.ids, dtype=torch.bool)
        return Step(
            denoiser=model.denoiser,
            canvas=canvas,
            prediction=prediction,
            stats=proposal.stats,
            proposal=proposal.tokens,
            proposal_probability=proposal.probability,
            drawn_probability=proposal.drawn,
            noised_log_probability=proposal.noised,
            masked=slots,
            eligible=eligible,
            budget=torch.tensor(budget, device=device),
            remaining=left.double() / lengths,
            observed=nowhere,
            given=nowhere,
            delayed=None,
            clocks=clocks,
            generators=generators,
            memory=self._memory.copy(),
            forwards=Forwards(model.denoiser),
        )

    def _plan(self) -> tuple[int, ...]:
        """How many tokens each step of a block commits."""
        if self._transfer_schedule is None:
            raise RuntimeError("call set_timesteps before step")
        return tuple(self._transfer_schedule.tolist())


def llada2_pipeline(model: LoadedModel, sampler: str = "boe", **options: Any) -> Any:
    """diffusers' ``LLaDA2Pipeline`` on one of our denoisers.

    Call it with ``editing_threshold=None``; ``options`` are those of :class:`BoEScheduler`.
    """
    from diffusers import LLaDA2Pipeline

    scheduler = BoEScheduler(sampler=sampler, **options)
    stand_in = DenoiserModel(model.denoiser)
    scheduler.bind(stand_in)
    pipe = LLaDA2Pipeline(model=stand_in, scheduler=scheduler, tokenizer=model.tokenizer)
    # The tokenizer of a checkpoint need not name the mask.
    pipe.mask_token_id = model.denoiser.facts.mask_id
    return pipe
