"""Running rows of a batch step by step: predict, decide, write, account."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.decoding.backtracking import Verdict, go_back, judge, without_excluded
from boe.decoding.batch import BatchState, column, gather, ready_row, view_of
from boe.decoding.draws import Draws
from boe.decoding.forwards import Forwards
from boe.decoding.predicting import Predicted, predict
from boe.decoding.proofreading import ReadingRoom, read_again, seen_lengths, to_read
from boe.decoding.recording import record_of
from boe.decoding.records import Item
from boe.decoding.rows import Row
from boe.decoding.setbacks import Failures, Room, UnusableLogits, alone
from boe.decoding.stopping import beyond_end, end_by_caller, stopped_at
from boe.samplers.caching import KVCache
from boe.samplers.proofreading import Proofread
from boe.samplers.step import Move, Step, StepCost
from boe.samplers.strategy import Strategy
from boe.samplers.tokens import Tokens, propose
from boe_kernels import EntropyStats


class Written(NamedTuple):
    """What the host knows of the rows after a step, one entry for each.

    Attributes:
        changed: whether the step wrote anything, or took anything back.
        left: masks left in the current block.
        ends: where the row ends now, if it does.
        prefixes: how many ids stand before its first mask, where that is asked for.
    """

    changed: list[bool]
    left: list[int]
    ends: list[int | None]
    prefixes: list[int]


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
        cache: which keys and values are kept from step to step.
        failures: whether a sequence that fails ends the decode ("raise"), or only itself.
        room: how many rows fit into memory, and reading_room: where they are proofread.
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
    cache: KVCache = field(default_factory=KVCache)
    failures: Failures = "raise"
    room: Room = field(default_factory=Room)
    reading_room: ReadingRoom = field(default_factory=ReadingRoom)

    def run(self, rows: Sequence[Row], pause: Callable[[Row], bool] = lambda row: False) -> None:
        """Decode the rows until each is done or, after a step, ``pause`` holds.

        Rows that are done leave the batch; what they hold is then up to date.
        """
        live = [row for row in rows if not row.done]
        if live:
            self._run(live, gather(live), pause)

    def _run(self, live: list[Row], state: BatchState, pause: Callable[[Row], bool]) -> None:
        parts = self.room.parts(len(live))
        if len(parts) > 1:
            batches = [([live[k] for k in part], state.select(part)) for part in parts]
            del state
            for rows, part_state in batches:
                self._run(rows, part_state, pause)
            return
        while live:
            began = time.perf_counter()
            try:
                step, move, cost, verdict = self._step(live, state)
            except torch.OutOfMemoryError as error:
                if len(live) == 1:
                    error.add_note(alone(live[0].number, state.canvas.length))
                    self._fail(live[0], error)
            except UnusableLogits as error:
                for k, message in error.messages.items():
                    self._fail(live[k], error if len(live) == 1 else ValueError(message))
            else:
                # Only now: what a step that failed put into its memory is forgotten.
                state.memory = step.memory
                state.kept = cost.kept
                if verdict is not None:
                    move = go_back(live, state, step, move, verdict)
                written = self._write(live, state, step, move)
                move, taken_back = self._proofread(live, state, move, written)
                self._advance(live, written, taken_back)
                seconds = (time.perf_counter() - began) / len(live)
                self._charge(live, state.canvas, cost, move.scores.cost, seconds)
                self._tell(live, state, step, move, written.changed)
                # What the prediction kept must not be held through the next one.
                del step, move, verdict
                staying = [k for k, row in enumerate(live) if not (row.done or pause(row))]
                live, state = self._part_with(live, state, staying)
                continue
            staying = [k for k, row in enumerate(live) if not row.done]
            if len(staying) == len(live):
                self.room.shrink(len(live))
                return self._run(live, state, pause)
            live, state = self._part_with(live, state, staying)

    def _fail(self, row: Row, error: Exception) -> None:
        """End a row that cannot go on; raises the error unless failures are kept."""
        if self.failures == "raise":
            raise error
        # Its traceback would keep the tensors of the failed step alive.
        row.item.error = error.with_traceback(None)
        row.blocks = []

    def _part_with(
        self, live: list[Row], state: BatchState, staying: list[int]
    ) -> tuple[list[Row], BatchState]:
        """The batch of the rows that stay; the others get what the batch held of them."""
        if len(staying) == len(live):
            return live, state
        for k in set(range(len(live))) - set(staying):
            live[k].item.ids = state.canvas.ids[k, : state.canvas.lengths[k]]
            live[k].memory = state.memory.row(k)
        rest = [live[k] for k in staying]
        return rest, state.select(staying) if rest else state

    def _tell(
        self, live: list[Row], state: BatchState, step: Step, move: Move, changed: list[bool]
    ) -> None:
        """Lend, record and report what a step did."""
        for k, row in enumerate(live):
            self._lend(row, step, move, k, changed[k])
            if row.item.trajectory is not None:
                row.item.trajectory.append(record_of(step, move, k, row.returned))
            if self.on_step is not None and row.reports:
                row.item.ids = state.canvas.ids[k, : state.canvas.lengths[k]]
                self.on_step(row.number, row.item)

    def look(self, rows: Sequence[Row]) -> None:
        """Have every row's next prediction ``ready``; forwards are charged."""
        live = [row for row in rows if row.ready is None and not row.done]
        for part in self.room.parts(len(live)):
            self._look([live[k] for k in part])

    def _look(self, live: list[Row]) -> None:
        if not live:
            return
        began = time.perf_counter()
        state = gather(live)
        view = view_of(live, state, self.strategy, self.forwards.denoiser.facts, self.cache)
        try:
            prediction, cost = predict(self.forwards, self.cache, live, state, view, "nothing")
        except torch.OutOfMemoryError as error:
            if len(live) == 1:
                error.add_note(alone(live[0].number, state.canvas.length))
                raise
        else:
            for k, row in enumerate(live):
                row.ready = ready_row(prediction, k, view.positions[k] >= 0)
            seconds = (time.perf_counter() - began) / len(live)
            self._charge(live, state.canvas, cost, None, seconds, steps=0)
            return
        self.room.shrink(len(live))
        self.look(live)

    @property
    def mask_id(self) -> int:
        return self.forwards.denoiser.facts.mask_id

    def draws(self, rows: Sequence[Row], purpose: str) -> Draws:
        """The rows' random generators for one purpose of their next step."""
        return Draws(rows, self.seed, purpose, self.forwards.denoiser.device)

    def _step(
        self, live: list[Row], state: BatchState
    ) -> tuple[Step, Move, Predicted, Verdict | None]:
        """Predict and decide; also what the prediction took, and which rows are to go back."""
        strategy, device = self.strategy, state.canvas.ids.device
        view = view_of(live, state, self.strategy, self.forwards.denoiser.facts, self.cache)
        # Where all eligible positions will be revealed there is nothing to score. A row that
        # reveals nothing is scored beside one that does.
        free = [clock for clock in view.clocks if clock.left > clock.change]
        choice = any(c.change > 0 for c in free) and any(strategy.steers(c) for c in free)
        keep = strategy.keep if choice else "nothing"
        prediction, cost = predict(self.forwards, self.cache, live, state, view, keep)
        seen, backtrack = prediction, strategy.backtrack
        if backtrack is not None:
            prediction, refuted = without_excluded(seen, live, view.masked, backtrack.sure)
        draws = self.draws(live, "tokens")
        proposal = propose(prediction, self.tokens, draws, strategy.which.noised)
        _check_stats(live, view.positions, proposal.stats)
        budget = [max(clock.change, 0) for clock in view.clocks]
        step = Step(
            denoiser=self.forwards.denoiser,
            canvas=state.canvas,
            prediction=prediction,
            stats=proposal.stats,
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
            memory=state.memory.copy(),
            forwards=self.forwards,
            discarded=self._discarded(view.positions, state),
        )
        move, verdict = strategy.move(step), None
        if backtrack is not None:
            verdict = judge(backtrack, live, step, move, seen, refuted)
        return step, move, cost, verdict

    def _delayed(self, tokens: Tensor) -> Tensor | None:
        if not self.delayed:
            return None
        return torch.isin(tokens, torch.tensor(self.delayed, device=tokens.device))

    def _discarded(self, positions: Tensor, state: BatchState) -> Tensor | None:
        if not self.stop:
            return None
        behind = beyond_end(state.canvas, state.given, self.stop)
        return behind.gather(1, positions.clamp_min(0))

    def _write(self, live: list[Row], state: BatchState, step: Step, move: Move) -> Written:
        """Write the move into the canvas; what the host must know of it."""
        canvas, device = state.canvas, state.canvas.ids.device
        changed = move.reveal.any(dim=1) | column([r.corrects for r in live], device).squeeze(1)
        canvas.ids.copy_(step.written(canvas.ids, move.reveal, move.tokens))
        if move.remask is not None:
            canvas.ids.masked_fill_(move.remask, self.mask_id)
            changed = changed | move.remask.any(dim=1)
        if self.weighs:
            log_p = step.proposal_probability.double().log()
            gained = torch.where(move.reveal, log_p, 0.0).sum(dim=1).tolist()
            for row, more in zip(live, gained, strict=True):
                row.log_likelihood += more
        masked = canvas.masked(self.mask_id)
        here = torch.arange(canvas.length, device=device)
        end = column([row.blocks[0].end for row in live], device)
        left = (masked & (here < end)).sum(dim=1)
        news = [left, changed.long()]
        vocab_size = self.forwards.denoiser.facts.vocab_size
        writes_others = move.tokens is not step.proposal
        if writes_others:
            foreign = move.reveal & ((move.tokens < 0) | (move.tokens >= vocab_size))
            news.append(foreign.any(dim=1).long())
        if self.stop:
            news.append(stopped_at(canvas, state.given, masked, self.stop))
        if self.on_step is not None:
            news.append((masked.cumsum(dim=1) == 0).sum(dim=1))
        facts = torch.stack(news, dim=1)
        if self.stop_when is not None:
            facts = torch.cat((facts, canvas.ids), dim=1)
        written = Written([], [], [], [])
        # One wait for the device per step, for all that the host must know.
        for k, (now_left, differs, *others) in enumerate(facts.tolist()):
            if writes_others and others.pop(0):
                raise ValueError(
                    f"{type(self.strategy.which).__name__}.move must write ids in "
                    f"[0, {vocab_size}), got others for sequence {live[k].number}"
                )
            found = [others.pop(0)] if self.stop else []
            prefix = others.pop(0) if self.on_step is not None else 0
            ids = others[: canvas.lengths[k]]
            found.append(end_by_caller(self.stop_when, live[k].number, ids, self.mask_id))
            written.changed.append(bool(differs))
            written.left.append(now_left)
            written.ends.append(min((end for end in found if end >= 0), default=None))
            written.prefixes.append(min(prefix, canvas.lengths[k]))
        return written

    def _advance(self, live: list[Row], written: Written, taken_back: list[int]) -> None:
        """Note where the rows stand after a step, and after what proofreading took back."""
        for k, row in enumerate(live):
            end = written.ends[k]
            if taken_back[k]:
                row.reopen(taken_back[k], written.left[k], end)
            elif not row.done:
                try:
                    if row.returned is None or row.corrects:
                        row.advance(written.left[k])
                except RuntimeError as error:
                    self._fail(row, error)
                if end is not None:
                    row.blocks = []
                    row.item.end = end
            row.item.final = self._final(row, written.prefixes[k])

    def _proofread(
        self, live: list[Row], state: BatchState, move: Move, written: Written
    ) -> tuple[Move, list[int]]:
        """The move with what is taken back of blocks that are written now, and how much."""
        proofread, nothing = self.strategy.proofread, [0] * len(live)
        if proofread is None:
            return move, nothing
        due = to_read(proofread, live, state.canvas, written.left, written.ends)
        if not due:
            return move, nothing
        for k, tokens in due.items():
            live[k].note_reading(tokens)
        taken, waiting = torch.zeros_like(state.given), list(due)
        while waiting:
            part = [waiting[k] for k in self.reading_room.rows.parts(len(waiting))[0]]
            at_once = self.reading_room.at_once(sum(len(due[k]) for k in part), state.canvas.length)
            failed, full = dict[int, Exception](), False
            try:
                doubted = self._read(proofread, live, state, part, written.ends, at_once)
            except torch.OutOfMemoryError as error:
                full = len(part) > 1 or at_once > 1
                if not full:
                    error.add_note(alone(live[part[0]].number, state.canvas.length))
                    failed[part[0]] = error
            except UnusableLogits as error:
                failed = {part[k]: ValueError(text) for k, text in error.messages.items()}
            else:
                taken[part, : doubted.shape[1]] = doubted
            # Only now: an error would keep what did not fit.
            if full:
                self.reading_room.shrink(len(part), at_once)
                continue
            for k, failure in failed.items():
                self._fail(live[k], failure)
            # Beside those that failed the others have not been read.
            waiting = [k for k in waiting if k not in (failed or part)]
        state.canvas.ids.masked_fill_(taken, self.mask_id)
        remask = taken if move.remask is None else taken | move.remask
        return replace(move, remask=remask, ready=None), taken.sum(dim=1).tolist()

    def _read(
        self,
        proofread: Proofread,
        live: list[Row],
        state: BatchState,
        part: list[int],
        ends: list[int | None],
        at_once: int,
    ) -> Tensor:
        """What is doubted of the blocks of some rows, bool (N, L) as far as they see."""
        rows, whole = [live[k] for k in part], state.canvas.select(part)
        lengths = seen_lengths(whole, rows, self.forwards.denoiser.facts)
        canvas = Canvas(whole.ids[:, : max(lengths)], lengths)
        given = state.given[part, : canvas.length]
        reading = read_again(
            self.forwards, proofread, rows, canvas, given, [ends[k] for k in part], at_once
        )
        calls, nothing = reading.forwards.tolist(), torch.zeros_like(reading.rows)
        shares = [
            count * seen / length
            for count, seen, length in zip(calls, lengths, whole.lengths, strict=True)
        ]
        cost = StepCost(forwards=nothing, backwards=nothing, rows=reading.rows)
        self._charge(rows, whole, Predicted(calls, shares), cost, seconds=0.0, steps=0)
        return reading.doubted

    def _final(self, row: Row, prefix: int) -> int:
        """How many ids of ``row`` will not change; ``prefix`` come before its first mask."""
        if self.strategy.particles is not None:
            return 0
        if row.done:
            return prefix if row.item.end is None else row.item.end
        if row.guesses:
            return min(prefix, row.guesses[0].prefix)
        return min(prefix, row.blocks[0].start) if self.strategy.takes_back else prefix

    def _lend(self, row: Row, step: Step, move: Move, k: int, changed: bool) -> None:
        """Keep logits that the row's next step would compute again."""
        row.ready = None
        # A block-causal model's step has seen nothing of the next block.
        if row.index == 0 and self.forwards.denoiser.facts.block_length is not None:
            return
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
        predicted: Predicted,
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
            account.nfe_forward += predicted.calls[k] + more[k]
            account.n_backward += backwards[k]
            account.flop_equiv += predicted.shares[k] + more[k]
            account.flop_equiv += rows[k] / canvas.lengths[k]


def _check_stats(live: list[Row], positions: Tensor, stats: EntropyStats) -> None:
    bad = stats.entropy.isnan() & (positions >= 0)
    if bool(bad.any()):
        messages: dict[int, str] = {}
        for row, slot in bad.nonzero().tolist():
            messages.setdefault(
                row,
                f"the model's logits for sequence {live[row].number}, position "
                f"{int(positions[row, slot])} are NaN or allow no token",
            )
        raise UnusableLogits(messages)
