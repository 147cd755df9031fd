"""Running rows of a batch step by step: predict, decide, write, account."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.decoding.batch import BatchState, View, column, gather, ready_row, view_of
from boe.decoding.draws import Draws
from boe.decoding.forwards import Forwards
from boe.decoding.recording import record_of
from boe.decoding.records import Item
from boe.decoding.rows import Row
from boe.decoding.stopping import end_by_caller, stopped_at
from boe.denoisers.base import Keep, Prediction
from boe.samplers.step import Move, Step, StepCost
from boe.samplers.strategy import Strategy
from boe.samplers.tokens import Tokens, propose
from boe_kernels import EntropyStats, entropy_stats


@dataclass(frozen=True)
class Decoder:
    """One strategy on one denoiser.

    Attributes:
        tokens: what is written, with its temperature.
        seed: of all random draws, with each row's key.
        delayed: ids whose positions are revealed last.
        stop: patterns that end a sequence.
        stop_when: where a row ends, given its number and its ids up to the first mask.
        on_step: called after each step for every row, with its number and item.
        weighs: whether rows add up the log-probabilities of what they reveal.
    """

    forwards: Forwards
    strategy: Strategy
    tokens: Tokens
    seed: int
    delayed: tuple[int, ...] = ()
    stop: tuple[tuple[int, ...], ...] = ()
    stop_when: Callable[[int, list[int]], int | None] | None = None
    on_step: Callable[[int, Item], None] | None = None
    weighs: bool = False

    def run(self, rows: Sequence[Row], pause: Callable[[Row], bool] = lambda row: False) -> None:
        """Decode the rows until each is done or, after a step, ``pause`` holds.

        Rows that are done leave the batch; what they hold is then up to date.
        """
        live = [row for row in rows if not row.done]
        if not live:
            return
        state = gather(live)
        while live:
            began = time.perf_counter()
            step, move, cost = self._step(live, state)
            changed = self._write(live, state, step, move)
            seconds = (time.perf_counter() - began) / len(live)
            self._charge(live, state.canvas, cost, move.scores.cost, seconds)
            for k, row in enumerate(live):
                self._lend(row, step, move, k, changed[k])
                if row.item.trajectory is not None:
                    row.item.trajectory.append(record_of(step, move, k))
                if self.on_step is not None and row.reports:
                    row.item.ids = state.canvas.ids[k, : state.canvas.lengths[k]]
                    self.on_step(row.number, row.item)
            staying = [k for k, row in enumerate(live) if not (row.done or pause(row))]
            if len(staying) < len(live):
                for k in set(range(len(live))) - set(staying):
                    live[k].item.ids = state.canvas.ids[k, : state.canvas.lengths[k]]
                    live[k].memory = state.memory.row(k)
                live = [live[k] for k in staying]
                if live:
                    state = state.select(staying)

    def look(self, rows: Sequence[Row]) -> None:
        """Have every row's next prediction ``ready``; forwards are charged."""
        live = [row for row in rows if row.ready is None and not row.done]
        if not live:
            return
        began = time.perf_counter()
        state = gather(live)
        view = view_of(live, state, self.strategy, self.mask_id)
        prediction, forwards = self._predict(live, state, view, "nothing")
        for k, row in enumerate(live):
            row.ready = ready_row(prediction, k, view.positions[k] >= 0)
        seconds = (time.perf_counter() - began) / len(live)
        self._charge(live, state.canvas, forwards, None, seconds, steps=0)

    @property
    def mask_id(self) -> int:
        return self.forwards.denoiser.facts.mask_id

    def draws(self, rows: Sequence[Row], purpose: str) -> Draws:
        """The rows' random generators for one purpose of their next step."""
        return Draws(rows, self.seed, purpose, self.forwards.denoiser.device)

    def _step(self, live: list[Row], state: BatchState) -> tuple[Step, Move, list[float]]:
        """Predict and decide; also the forwards that the prediction took, per row."""
        strategy, device = self.strategy, state.canvas.ids.device
        view = view_of(live, state, self.strategy, self.mask_id)
        # Where all eligible positions will be revealed there is nothing to score.
        choice = any(clock.left > clock.change > 0 for clock in view.clocks)
        keep = strategy.keep if choice else "nothing"
        prediction, cost = self._predict(live, state, view, keep)
        stats = entropy_stats(prediction.logits)
        _check_stats(live, view.positions, stats)
        draws = self.draws(live, "tokens")
        proposal = propose(prediction, stats, self.tokens, draws, strategy.which.noised)
        budget = [max(clock.change, 0) for clock in view.clocks]
        step = Step(
            denoiser=self.forwards.denoiser,
            canvas=state.canvas,
            prediction=prediction,
            stats=stats,
            proposal=proposal.tokens,
            proposal_probability=proposal.probability,
            drawn_probability=proposal.drawn,
            noised_log_probability=proposal.noised,
            masked=view.masked,
            eligible=view.eligible,
            budget=torch.tensor(budget, device=device),
            remaining=torch.tensor([row.remaining for row in live], device=device),
            observed=view.observed,
            given=state.given,
            delayed=self._delayed(proposal.tokens),
            clocks=view.clocks,
            generators=self.draws(live, "scores"),
            memory=state.memory,
            forwards=self.forwards,
        )
        return step, strategy.move(step), cost

    def _predict(
        self, live: list[Row], state: BatchState, view: View, keep: Keep
    ) -> tuple[Prediction, list[float]]:
        """The step's prediction; rows that have theirs ready are not run again."""
        passes, positions = float(self.forwards.passes), view.positions
        spared = [
            row.ready is not None or (not row.remaining and not looks)
            for row, looks in zip(live, view.looks, strict=True)
        ]
        if keep != "nothing" or not any(spared):
            prediction = self.forwards.predict(state.canvas, state.given, positions, keep)
            return prediction, [passes] * len(live)
        stale = [k for k, spare in enumerate(spared) if not spare]
        shown: dict[int, Tensor] = {
            k: row.ready.logits for k, row in enumerate(live) if row.ready is not None
        }
        if stale:
            part = state.select(stale)
            rows = positions[torch.tensor(stale, device=positions.device)]
            fresh = self.forwards.predict(part.canvas, part.given, rows).logits
            shown.update(zip(stale, fresh, strict=True))
        vocabulary = self.forwards.denoiser.facts.vocab_size
        like = next(iter(shown.values()), torch.empty(0, device=positions.device))
        # Rows that have nothing to predict keep zeros, which nothing reads.
        merged = like.new_zeros(*positions.shape, vocabulary)
        for k, logits in shown.items():
            merged[k, : len(logits)] = logits
        forwards = [0.0 if spare else passes for spare in spared]
        return Prediction(state.canvas, merged, positions), forwards

    def _delayed(self, tokens: Tensor) -> Tensor | None:
        if not self.delayed:
            return None
        return torch.isin(tokens, torch.tensor(self.delayed, device=tokens.device))

    def _write(self, live: list[Row], state: BatchState, step: Step, move: Move) -> list[bool]:
        """Write the move into the canvas and note what is left; which rows changed."""
        canvas = state.canvas
        changed = move.reveal.any(dim=1)
        canvas.ids.copy_(step.written(canvas.ids, move.reveal, move.tokens))
        if move.remask is not None:
            canvas.ids.masked_fill_(move.remask, self.mask_id)
            changed = changed | move.remask.any(dim=1)
        if self.weighs:
            log_p = step.proposal_probability.double().log()
            gained = torch.where(move.reveal, log_p, 0.0).sum(dim=1).tolist()
            for row, more in zip(live, gained, strict=True):
                row.log_likelihood += more
        device = canvas.ids.device
        masked = canvas.masked(self.mask_id)
        here = torch.arange(canvas.length, device=device)
        end = column([clock.end for clock in step.clocks], device)
        left = (masked & (here < end)).sum(dim=1)
        news = [left, changed.long()]
        if self.stop:
            news.append(stopped_at(canvas, state.given, masked, self.stop))
        facts = torch.stack(news, dim=1)
        if self.stop_when is not None:
            facts = torch.cat((facts, canvas.ids), dim=1)
        # One wait for the device per step, for all that the host must know.
        known = facts.tolist()
        for k, (row, (now_left, _, *others)) in enumerate(zip(live, known, strict=True)):
            row.advance(now_left)
            ends = [others.pop(0)] if self.stop else []
            ids = others[: canvas.lengths[k]]
            ends.append(end_by_caller(self.stop_when, row.number, ids, self.mask_id))
            found = [end for end in ends if end >= 0]
            if found:
                row.blocks = []
                row.item.end = min(found)
        return [bool(fact[1]) for fact in known]

    def _lend(self, row: Row, step: Step, move: Move, k: int, changed: bool) -> None:
        """Keep logits that the row's next step would compute again."""
        row.ready = None
        if move.ready is not None:
            row.ready = move.ready[k]
        elif self.strategy.which.reuses and not changed and not row.done:
            shown = step.positions[k] >= 0
            # A new block starts with masks alone, whatever the old one's step looked at.
            row.ready = ready_row(step.prediction, k, shown if row.index else step.masked[k])

    def _charge(
        self,
        live: list[Row],
        canvas: Canvas,
        forwards: list[float],
        cost: StepCost | None,
        seconds: float,
        steps: int = 1,
    ) -> None:
        nothing = [0.0] * len(live)
        more, backwards, rows = (
            (nothing, nothing, nothing)
            if cost is None
            else (cost.forwards.tolist(), cost.backwards.tolist(), cost.rows.tolist())
        )
        for k, row in enumerate(live):
            account = row.item.account
            account.steps += steps
            account.seconds += seconds
            account.nfe_forward += forwards[k] + more[k]
            account.n_backward += backwards[k]
            account.flop_equiv += forwards[k] + more[k]
            account.flop_equiv += rows[k] / canvas.lengths[k]


def _check_stats(live: list[Row], positions: Tensor, stats: EntropyStats) -> None:
    bad = stats.entropy.isnan() & (positions >= 0)
    if bool(bad.any()):
        row, slot = bad.nonzero()[0].tolist()
        raise ValueError(
            f"the model's logits for sequence {live[row].number}, position "
            f"{int(positions[row, slot])} are NaN or allow no token"
        )
