"""Answering one shard of prompts: independent of what starts it, and on which host.

A shard's answers are stored batch by batch as they come, and a restart goes on behind the
last whole batch. The finished shard is written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch

from boe.decoding.loop import prepare
from boe.denoisers import UnsupportedModel
from boe.denoisers.loading import LoadedModel, load_model
from boe.denoisers.placement import compiled_as, dtype_named, require_device
from boe.evaluate.environment import environment
from boe.evaluate.fingerprint import fingerprint
from boe.evaluate.store import RecordStore, digest_of
from boe.files import write_json, write_whole
from boe.samplers import strategy_from
from boe.scaling.job import JobFolder, ModelSource
from boe.scaling.prompts import Prompt
from boe.scaling.rank_group import RankGroup
from boe.text import Failure, Reply, TextGenerator

SCHEMA = "boe/generation-shard/1"

T = TypeVar("T")
R = TypeVar("R")


class Replica:
    """One model that answers shards of a job, one after another.

    Args:
        folder: of the job.
        loaded: its model, if it is loaded already: shared out over ``group``, if there is one.
        group: the processes over which its layers are shared out; they are all given the
            same job. The first answers shards (:meth:`run_shard`), the others :meth:`follow`.

    Raises:
        ValueError: the job's prompt file has changed, or options that do not go with each other
            or with the model.
        FileNotFoundError, UnsupportedModel: as :func:`boe.load_model`.
    """

    def __init__(
        self,
        folder: JobFolder,
        loaded: LoadedModel | None = None,
        group: RankGroup | None = None,
    ) -> None:
        self.folder, self.job = folder, folder.read()
        self._deal = self.job.deal()
        self.loaded = load_source(self.job.model, group) if loaded is None else loaded
        options = self.job.options
        shares_fate = strategy_from(options.sampler).particles is not None
        self._made_with = {
            "denoiser": fingerprint(self.loaded.denoiser),
            "environment": environment(),
        }
        self.group = group
        denoiser = compiled_as(self.job.model.compilation, self.loaded.denoiser)
        # What no prompt is to blame for is found here, and not at every prompt; stop texts need
        # be no tokens.
        prepare(denoiser, **replace(options, stop=()).arguments(self.loaded.tokenizer))
        self.generator = TextGenerator(
            replace(self.loaded, denoiser=denoiser),
            replace(options, failures="raise" if shares_fate else "keep"),
        )

    def follow(self) -> None:
        """Decode with the leader what it decodes, until it is done."""
        assert self.group is not None
        while (batch := self.group.agree()) is not None:
            with suppress(ValueError):  # the leader has it too, and decides
                self._write(batch)

    def dismiss(self) -> None:
        """Tell those that follow that all is done."""
        if self.group is not None:
            self.group.agree(None)

    def run_shard(self, shard: int) -> None:
        """Answer what the shard lacks, and write it.

        Prompts that cannot be answered are written with the reason, and the rest is kept.
        They are tried again by every call, since no answer of theirs is stored.

        Raises:
            BlockingIOError: another process is at work on this shard.
            torch.AcceleratorError: the device has failed, which is no prompt's doing.
        """
        # The number of shards decides nothing but which file an answer is in.
        of = {**self.job.identity, "denoiser": self._made_with["denoiser"]}
        failures: dict[int, str] = {}
        with RecordStore(self.folder.progress(shard)) as store:
            for batch in self._deal.shards[shard]:
                stored = store.results(of)
                if any(prompt.line not in stored for prompt in batch):
                    # The whole batch, also where half of it is there: it is decoded as it
                    # would have been without the interruption.
                    new, failed = self._answer(batch)
                    store.append(of, [a for a in new if a["item"] not in stored])
                    failures.update(failed)
            answers = store.results(of)
        prompts = sorted((p for batch in self._deal.shards[shard] for p in batch), key=_line_of)
        # An answer that was stored before counts, whatever became of it this time.
        failures = {line: why for line, why in failures.items() if line not in answers}
        lines = [_as_line(prompt, answers, failures) for prompt in prompts]
        write_json(
            self.folder.report(shard),
            {
                "schema": SCHEMA,
                "shard": shard,
                "prompts": len(prompts),
                "failures": len(failures),
                "decided_by": digest_of(of),
                **self._made_with,
            },
        )
        write_whole(self.folder.shard(shard), "".join(line + "\n" for line in lines))

    def _answer(self, batch: Sequence[Prompt]) -> tuple[list[dict[str, Any]], dict[int, str]]:
        """A batch's answers, and by line why prompts have none."""
        answers: list[dict[str, Any]] = []
        failures: dict[int, str] = {}
        if self.group is None:
            outcomes = isolating(self._write, batch)
        else:
            # All ranks have an error about a prompt; any other may be this one's alone.
            outcomes = isolating(self._lead, batch, ValueError)
        for prompt, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Reply):
                answers.append(_as_record(prompt, outcome))
            else:
                error = outcome.error if isinstance(outcome, Failure) else outcome
                failures[prompt.line] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return answers, failures

    def _lead(self, batch: Sequence[Prompt]) -> list[Reply | Failure]:
        """As :meth:`_write`, with those that follow."""
        assert self.group is not None
        return self._write(self.group.agree(batch))

    def _write(self, batch: Sequence[Prompt]) -> list[Reply | Failure]:
        """Replies to prompts of one kind and length."""
        kind, length = batch[0].kind, batch[0].length
        options: dict[str, Any] = {"item_ids": [prompt.key for prompt in batch]}
        if kind == "chat":
            chats = [prompt.messages for prompt in batch]
            return self.generator.chat(chats, max_new_tokens=length, **options)  # type: ignore[arg-type]
        texts = [prompt.prompt or "" for prompt in batch]
        if length:
            return self.generator.complete(texts, max_new_tokens=length, **options)
        # Where nothing is appended there are gaps to fill, and nothing to stop.
        return self.generator.infill(texts, stop=(), **options)


def _as_record(prompt: Prompt, reply: Reply) -> dict[str, Any]:
    """What is stored of a reply."""
    gaps = {"gaps": list(reply.gaps)} if reply.gaps else {}
    return {
        "item": prompt.line,
        "answer": reply.text,
        **gaps,
        "finish": reply.finish,
        "tokens": len(reply.ids),
        **asdict(reply.account),
    }


def isolating(
    run: Callable[[Sequence[T]], list[R]],
    items: Sequence[T],
    blame: type[Exception] = Exception,
) -> list[R | Exception]:
    """``run(items)``; where that fails, in halves, down to the items that fail on their own.

    Args:
        blame: errors that an item may be to blame for; others are raised.

    Returns:
        A result or the exception for each item, in order. Too little memory for a batch is
        a failure of this kind too.

    Raises:
        UnsupportedModel, torch.AcceleratorError: what no item is to blame for.
    """
    if not items:
        return []
    try:
        return [*run(items)]
    except (UnsupportedModel, torch.AcceleratorError):
        raise
    except blame as error:
        if len(items) == 1:
            return [error.with_traceback(None)]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (len(items) + 1) // 2
    return isolating(run, items[:middle], blame) + isolating(run, items[middle:], blame)


def load_source(model: ModelSource, group: RankGroup | None = None) -> LoadedModel:
    """The job's model on the device that this process is given, or shared out over ``group``."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    return load_model(
        model.source,
        device=require_device(model.device) if group is None else None,
        dtype=dtype_named(model.dtype),
        revision=model.revision,
        mask_id=model.mask_id,
        tokenizer=model.tokenizer,
        allow_pickle=model.allow_pickle,
        trust_remote_code=model.trust_remote_code,
        mesh=None if group is None else group.mesh,
    )


def _as_line(
    prompt: Prompt, answers: Mapping[int, Mapping[str, Any]], failures: Mapping[int, str]
) -> str:
    """A line of a finished shard."""
    content: dict[str, Any] = {"id": prompt.id, "line": prompt.line}
    if prompt.line in failures:
        content["error"] = failures[prompt.line]
    else:
        answer = answers[prompt.line]
        content.update({name: value for name, value in answer.items() if name != "item"})
    if prompt.meta is not None:
        content["meta"] = prompt.meta
    return json.dumps(content, ensure_ascii=False)


def _line_of(prompt: Prompt) -> int:
    return prompt.line
