"""The class that lm-eval runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from lm_eval.api.model import LM
from torch import Tensor
from tqdm import tqdm

from boe.decoding import Account
from boe.denoisers import UnsupportedModel
from boe.denoisers.loading import LoadedModel
from boe.denoisers.placement import compiled_as
from boe.evaluate.fingerprint import fingerprint
from boe.evaluate.store import digest_of
from boe.lm_eval.costs import CostLog, failures_in, read_costs, summarise
from boe.lm_eval.failures import (
    UnusablePrompt,
    forget_failures,
    mark_failures,
    reason,
    warn,
    without_likelihood,
)
from boe.lm_eval.generation import Answer, Generator, Prompt
from boe.lm_eval.likelihood import LikelihoodEstimator, Passage
from boe.lm_eval.loading import prepared
from boe.lm_eval.passages import continuation, whole_text
from boe.lm_eval.ranks import Ranks, device_kind
from boe.lm_eval.recording import record_of, record_of_answer, record_of_bound
from boe.lm_eval.requests import Asked, asked
from boe.lm_eval.settings import EvaluationSettings
from boe.scaling.rank_group import RankGroup
from boe.text.tokenization import Texts

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CacheHook

R = TypeVar("R")

# lm-eval's own keys are hexadecimal, so this one meets none of them.
_CACHE_KEY = "boe settings"


class BoeLM(LM):
    """A masked diffusion model, decoded by any of boe's strategies.

    Args:
        loaded: a model that is already loaded, in Python.
        arguments: :class:`boe.lm_eval.settings.EvaluationSettings`; ``pretrained`` is then
            only a name.

    Attributes:
        fingerprint: digits that differ where answers may: of the settings, the files that they
            name, and the weights.
        last_fingerprint: of the model that was made last, for lm-eval's command, which makes it
            by itself.

    Raises:
        ValueError, TypeError: arguments that are unknown or do not fit.
        FileNotFoundError, UnsupportedModel: as :func:`boe.load_model`.
    """

    last_fingerprint: ClassVar[str]

    def __init__(self, *, loaded: LoadedModel | None = None, **arguments: Any) -> None:
        super().__init__()
        if loaded is not None:
            arguments.setdefault("pretrained", loaded.source)
        self.settings = settings = EvaluationSettings.from_arguments(**arguments)
        self.group = None
        if settings.tensor_parallel > 1:
            self.group = RankGroup.join(settings.tensor_parallel, device_kind(settings.device))
        # To lm-eval a model that is shared out is one process.
        self.ranks = Ranks.from_environment() if self.group is None else Ranks()
        self._rank, self._world_size = self.ranks.rank, self.ranks.world
        # Where lm-eval puts what ranks exchange, not where the model is.
        self._device = torch.device("cpu")
        loaded = prepared(loaded, settings, self.ranks, self.group)
        weights = fingerprint(loaded.denoiser)
        self.fingerprint = digest_of({**settings.identity, "denoiser": weights})
        BoeLM.last_fingerprint = self.fingerprint
        denoiser = compiled_as(settings.compile, loaded.denoiser)
        self.loaded = loaded = replace(loaded, denoiser=denoiser)
        self.denoiser, self.tokenizer = loaded.denoiser, loaded.tokenizer
        own = self.denoiser.facts.max_length
        self.max_length = min(
            (n for n in (settings.max_length, own) if n is not None), default=None
        )
        self.texts = Texts(loaded.tokenizer, self.denoiser.facts.mask_id)
        announce = self._announce if self.group is not None and self.group.leads else None
        self.generator = Generator(self.denoiser, self.texts, settings, self.max_length, announce)
        self.estimator = LikelihoodEstimator(
            self.denoiser,
            draws=settings.mc_num,
            guidance=settings.cfg,
            batch_size=settings.batch_size,
            seed=settings.seed,
            announce=announce,
        )
        writes = self.group is None or self.group.leads
        costs = settings.costs if writes else None
        self.costs = CostLog(costs, self.fingerprint, self.ranks.rank)

    # --- the three kinds of request -------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, each ending before the first of its request's stop texts.

        With ``failures="keep"`` the answer of a request that fails is empty.

        Raises:
            UnusablePrompt, UnusableLogits, torch.OutOfMemoryError: a request failed, and
                failures are not kept; the rest of its batch is.
        """
        wanted = asked(requests)
        self._check_repeats(wanted)
        prompts: list[Prompt] = []
        failed: list[Asked] = []
        answers: dict[int, str] = {}
        # All at once: a prompt that does not fit is found before anything is decoded.
        for request in wanted:
            if request.original is not None:
                continue
            try:
                prompts.append(self.generator.prepare(request))
            except UnusablePrompt as error:
                self._note_failure(request, error)
                if self.settings.failures == "raise":
                    raise
                failed.append(request)
                answers[request.number] = ""
        for answer in self._shown(self.generator.run(prompts), len(prompts), disable_tqdm):
            request = answer.prompt.asked
            if answer.error is not None:
                failed.append(request)
                self._note_failure(request, answer.error, answer)
                if self.settings.failures == "raise":
                    answer.error.add_note(f"while answering {request.name}")
                    raise answer.error
            else:
                self.costs.add(record_of_answer(answer))
                self._keep(request, answer.text)
            answers[request.number] = answer.text
        mark_failures(self.cache_hook, failed)
        return _in_order(wanted, answers)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Monte-Carlo bounds on the log-probability of continuations, given contexts.

        Raises:
            FailedRequests: some could not be computed, with ``failures="keep"`` after all
                others were; else the first one's own error.
        """

        def bound(passages: Sequence[Passage]) -> tuple[tuple[float, bool], Account]:
            likelihood = self.estimator.estimate(passages[0], self.settings.check_greedy)
            return (likelihood.log_probability, likelihood.is_greedy), likelihood.account

        return self._likelihoods(
            requests,
            partial(continuation, self.texts, self.max_length, self.settings.truncate),
            bound,
            disable_tqdm,
        )

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Monte-Carlo bounds on the log-probability of whole texts.

        Texts longer than the model takes are scored in windows, whose bounds are added.

        Raises:
            FailedRequests: as for ``loglikelihood``.
        """

        def bound(passages: Sequence[Passage]) -> tuple[float, Account]:
            account, total = Account(), 0.0
            for passage in passages:
                likelihood = self.estimator.estimate(passage)
                total += likelihood.log_probability
                account.add(likelihood.account)
            return total, account

        wholes = partial(whole_text, self.texts, self.max_length)
        return self._likelihoods(requests, wholes, bound, disable_tqdm)

    # --- one model in several processes ---------------------------------------------------

    def follow(self) -> None:
        """Decode and score with the first process what it does, until it dismisses.

        For all other processes of ``tensor_parallel``: they get no requests.
        """
        assert self.group is not None
        work: dict[str, Callable[..., Any]]
        work = {"decode": self.generator.decode, "estimate": self.estimator.estimate}
        while (said := self.group.agree()) is not None:
            what, arguments = said
            with suppress(ValueError):  # the first process has it too, and decides
                work[what](*arguments)

    def dismiss(self) -> None:
        """Let the processes go that :meth:`follow`: the first one's last word."""
        if self.group is not None:
            self.group.agree(None)

    def _announce(self, what: str, *arguments: Any) -> None:
        assert self.group is not None
        self.group.agree((what, arguments))

    # --- what else lm-eval asks -----------------------------------------------------------

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.texts.chat(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's template; lm-eval keeps it with the results.

        Raises:
            ValueError: a template is asked for by name.
        """
        if isinstance(chat_template, str):
            raise ValueError(f"the tokenizer has no named chat templates, got {chat_template!r}")
        return self.loaded.tokenizer.chat_template if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        return str(self.loaded.tokenizer.name_or_path).replace("/", "__")

    @property
    def eot_token_id(self) -> int | None:
        return self.loaded.tokenizer.eos_token_id

    def get_model_info(self) -> dict[str, Any]:
        """Settings and mean costs per task, which lm-eval adds to its results."""
        records = self.costs.records
        if self.settings.costs is not None:
            records = read_costs(self.settings.costs, self.fingerprint)
        return {
            "boe": {**asdict(self.settings), "fingerprint": self.fingerprint},
            "boe_costs": summarise(records),
            "boe_failures": failures_in(records),
        }

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Use lm-eval's cache of answers, if this model made it with these settings.

        Raises:
            ValueError: its answers come from other settings, or another model. lm-eval's
                own keys hold nothing but the request.
        """
        if cache_hook.dbdict is not None:
            made_by = cache_hook.dbdict.get(_CACHE_KEY)
            if made_by is None and len(cache_hook.dbdict) == 0:
                cache_hook.dbdict[_CACHE_KEY] = self.fingerprint
            elif made_by != self.fingerprint:
                raise ValueError(
                    "--use_cache names a cache whose answers were made with other model_args, or "
                    "by another model; give each its own"
                )
            forget_failures(cache_hook.dbdict)
        super().set_cache_hook(cache_hook)

    def all_gather(self, tensor: Tensor) -> Tensor:
        return self.ranks.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        return self.ranks.gather_object(obj, dst)

    def barrier(self) -> None:
        self.ranks.barrier()

    # --- ----------------------------------------------------------------------------------

    def _likelihoods(
        self,
        requests: Sequence[Instance],
        passages_of: Callable[[Asked], list[Passage]],
        bound: Callable[[Sequence[Passage]], tuple[R, Account]],
        silent: bool,
    ) -> list[R]:
        """The bound of every request, in order; each is kept as soon as it is there."""
        wanted = asked(requests)
        parts: dict[int, list[Passage]] = {}
        failed: list[tuple[Asked, Exception]] = []

        def fail(request: Asked, error: Exception) -> None:
            self._note_failure(request, error)
            if self.settings.failures == "raise":
                raise error
            # Its traceback would keep the tensors of the failed forward alive.
            failed.append((request, error.with_traceback(None)))

        # All at once: a text that does not fit is found before anything is computed.
        for request in wanted:
            if request.original is None:
                try:
                    parts[request.number] = passages_of(request)
                except UnusablePrompt as error:
                    fail(request, error)
        results: dict[int, R] = {}
        for number in self._shown(parts, len(parts), silent):
            try:
                results[number], account = bound(parts[number])
            except UnsupportedModel:
                raise
            except (ValueError, torch.OutOfMemoryError) as error:
                error.add_note(f"while scoring {wanted[number].name}")
                fail(wanted[number], error)
                continue
            self.costs.add(record_of_bound(wanted[number], parts[number], account))
            self._keep(wanted[number], results[number])
        if failed:
            raise without_likelihood(failed)
        return _in_order(wanted, results)

    def _note_failure(self, request: Asked, error: Exception, answer: Answer | None = None) -> None:
        """Record a failure, and say so if the run goes on without an answer."""
        why = reason(error)
        if self.settings.failures == "keep":
            warn(request.name, why)
        record = record_of(request) if answer is None else record_of_answer(answer)
        self.costs.add(replace(record, error=why))

    def _check_repeats(self, wanted: Sequence[Asked]) -> None:
        """lm-eval's cache has one answer for all repetitions of a request."""
        if self.cache_hook.dbdict is None:
            return
        for request in wanted:
            if (request.instance.repeats or 1) > 1 and not request.instance.args[1].get(
                "do_sample"
            ):
                raise ValueError(
                    f"{request.name}: with --use_cache its repetitions would all get the first "
                    "one's answer; add do_sample=true and a temperature to --gen_kwargs, or leave "
                    "the cache out"
                )

    def _shown(self, things: Iterable[Any], count: int, silent: bool) -> Iterable[Any]:
        return tqdm(things, total=count, desc="boe", disable=silent or self.rank != 0)

    def _keep(self, request: Asked, result: Any) -> None:
        """Put a result into lm-eval's cache, so that a later run goes on behind it."""
        self.cache_hook.add_partial(request.instance.request_type, request.instance.args, result)


def _in_order(wanted: Sequence[Asked], results: dict[int, Any]) -> list[Any]:
    return [
        results[request.number if request.original is None else request.original]
        for request in wanted
    ]
