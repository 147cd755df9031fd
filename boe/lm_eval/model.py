"""The class that lm-eval runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import LM
from torch import Tensor
from tqdm import tqdm

from boe.decoding import Account
from boe.denoisers.loading import LoadedModel, load_model
from boe.denoisers.placement import dtype_named
from boe.lm_eval.costs import CostLog, CostRecord, read_costs, summarise
from boe.lm_eval.generation import Answer, Generator
from boe.lm_eval.likelihood import LikelihoodEstimator, Passage, windows
from boe.lm_eval.ranks import Ranks
from boe.lm_eval.requests import Asked, asked
from boe.lm_eval.settings import EvaluationSettings
from boe.text.tokenization import Texts

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CacheHook

_EMBEDDED = "embedded:"
# lm-eval's own keys are hexadecimal, so this one meets none of them.
_CACHE_KEY = "boe settings"


class BoeLM(LM):
    """A masked diffusion model, decoded by any of boe's strategies.

    Args:
        loaded: a model that is already loaded, in Python.
        arguments: :class:`boe.lm_eval.settings.EvaluationSettings`; ``pretrained`` is then
            only a name.

    Raises:
        ValueError, TypeError: arguments that are unknown or do not fit.
        FileNotFoundError, UnsupportedModel: as :func:`boe.load_model`.
    """

    def __init__(self, *, loaded: LoadedModel | None = None, **arguments: Any) -> None:
        super().__init__()
        if loaded is not None:
            arguments.setdefault("pretrained", loaded.source)
        self.settings = settings = EvaluationSettings.from_arguments(**arguments)
        self.ranks = Ranks.from_environment()
        self._rank, self._world_size = self.ranks.rank, self.ranks.world
        # Where lm-eval puts what ranks exchange, not where the model is.
        self._device = torch.device("cpu")
        self.loaded = loaded = loaded or _load(settings, self.ranks)
        self.denoiser, self.tokenizer = loaded.denoiser, loaded.tokenizer
        own = self.denoiser.facts.max_length
        self.max_length = min(
            (n for n in (settings.max_length, own) if n is not None), default=None
        )
        self.texts = Texts(loaded.tokenizer, self.denoiser.facts.mask_id)
        self.generator = Generator(self.denoiser, self.texts, settings, self.max_length)
        self.estimator = LikelihoodEstimator(
            self.denoiser,
            draws=settings.mc_num,
            guidance=settings.cfg,
            batch_size=settings.batch_size,
            seed=settings.seed,
        )
        self.costs = CostLog(settings.costs, settings.fingerprint, self.ranks.rank)

    # --- the three kinds of request -------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, each ending before the first of its request's stop texts."""
        wanted = asked(requests)
        self._check_repeats(wanted)
        originals = [request for request in wanted if request.original is None]
        # All at once: a prompt that does not fit is found before anything is decoded.
        prompts = [self.generator.prepare(request) for request in originals]
        answers: dict[int, str] = {}
        for answer in self._shown(self.generator.run(prompts), len(prompts), disable_tqdm):
            request = answer.prompt.asked
            answers[request.number] = answer.text
            self.costs.add(_record_of(answer))
            self._keep(request, answer.text)
        return _in_order(wanted, answers)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Monte-Carlo bounds on the log-probability of continuations, given contexts."""
        wanted = asked(requests)
        passages = {
            request.number: self._continuation(request)
            for request in wanted
            if request.original is None
        }
        results: dict[int, tuple[float, bool]] = {}
        for number in self._shown(passages, len(passages), disable_tqdm):
            request, passage = wanted[number], passages[number]
            likelihood = self.estimator.estimate(passage, self.settings.check_greedy)
            results[number] = (likelihood.log_probability, likelihood.is_greedy)
            self._charge(request, [passage], likelihood.account)
            self._keep(request, results[number])
        return _in_order(wanted, results)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Monte-Carlo bounds on the log-probability of whole texts.

        Texts longer than the model takes are scored in windows, whose bounds are added.
        """
        wanted = asked(requests)
        parts = {
            request.number: self._whole(request) for request in wanted if request.original is None
        }
        results: dict[int, float] = {}
        for number in self._shown(parts, len(parts), disable_tqdm):
            account, total = Account(), 0.0
            for passage in parts[number]:
                likelihood = self.estimator.estimate(passage)
                total += likelihood.log_probability
                account.add(likelihood.account)
            results[number] = total
            self._charge(wanted[number], parts[number], account)
            self._keep(wanted[number], total)
        return _in_order(wanted, results)

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
            records = read_costs(self.settings.costs, self.settings.fingerprint)
        return {
            "boe": {**asdict(self.settings), "fingerprint": self.settings.fingerprint},
            "boe_costs": summarise(records),
        }

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Use lm-eval's cache of answers, if these settings made it.

        Raises:
            ValueError: its answers come from other settings, or another model. lm-eval's
                own keys hold nothing but the request.
        """
        if cache_hook.dbdict is not None:
            made_by = cache_hook.dbdict.get(_CACHE_KEY)
            if made_by is None and len(cache_hook.dbdict) == 0:
                cache_hook.dbdict[_CACHE_KEY] = self.settings.fingerprint
            elif made_by != self.settings.fingerprint:
                raise ValueError(
                    "--use_cache names a cache whose answers were made with other model_args, or "
                    "by another model; give each its own"
                )
        super().set_cache_hook(cache_hook)

    def all_gather(self, tensor: Tensor) -> Tensor:
        return self.ranks.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        return self.ranks.gather_object(obj, dst)

    def barrier(self) -> None:
        self.ranks.barrier()

    # --- ----------------------------------------------------------------------------------

    def _continuation(self, request: Asked) -> Passage:
        context, continuation = request.instance.args
        before, scored = self.texts.encode_pair(context, continuation)
        opening, closing = self.texts.opening(before or scored), self.texts.suffix
        excess = len(opening) + len(before) + len(scored) + len(closing) - (self.max_length or 0)
        if self.max_length is not None and excess > 0:
            if excess > len(before) or not self.settings.truncate:
                raise ValueError(
                    f"{request.name}: its texts have {excess} tokens more than the "
                    f"{self.max_length} positions of the model; truncate=true cuts the beginning "
                    "of contexts off"
                )
            before = before[excess:]
        return Passage((*opening, *before), tuple(scored), tuple(closing), str(request.key))

    def _whole(self, request: Asked) -> list[Passage]:
        (text,) = request.instance.args
        ids = self.texts.encode(text)
        opening = self.texts.opening(ids)
        if len(opening) < len(self.texts.prefix):  # they begin with it: it is given, not scored
            opening, ids = ids[: len(self.texts.prefix)], ids[len(self.texts.prefix) :]
        return windows(ids, opening, self.texts.suffix, self.max_length, str(request.key))

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

    def _charge(self, request: Asked, passages: Sequence[Passage], account: Account) -> None:
        given = sum(len(passage.before) + len(passage.after) for passage in passages)
        scored = sum(len(passage.scored) for passage in passages)
        self.costs.add(_record(request, given, scored, False, account))


def _load(settings: EvaluationSettings, ranks: Ranks) -> LoadedModel:
    source = settings.pretrained
    if source.startswith(_EMBEDDED):
        from boe.lm_eval.protocols.embedded import TEXT_TASKS

        name = source.removeprefix(_EMBEDDED)
        if name not in TEXT_TASKS:
            known = ", ".join(TEXT_TASKS)
            raise ValueError(f"pretrained must be {_EMBEDDED} and one of {known}, got {name!r}")
        source = str(TEXT_TASKS[name].weights)
    return load_model(
        source,
        device=ranks.device(settings.device),
        dtype=dtype_named(settings.dtype),
        mask_id=settings.mask_id,
        tokenizer=settings.tokenizer,
        allow_pickle=settings.allow_pickle,
        trust_remote_code=settings.trust_remote_code,
    )


def _in_order(wanted: Sequence[Asked], results: dict[int, Any]) -> list[Any]:
    return [
        results[request.number if request.original is None else request.original]
        for request in wanted
    ]


def _record_of(answer: Answer) -> CostRecord:
    prompt = answer.prompt
    given = len(prompt.canvas) - prompt.wish.gen_length
    return _record(prompt.asked, given, answer.tokens, answer.stopped, answer.account)


def _record(request: Asked, given: int, tokens: int, stopped: bool, account: Account) -> CostRecord:
    instance = request.instance
    return CostRecord(
        kind=instance.request_type,
        task=instance.task_name,
        doc=instance.doc_id,
        choice=instance.idx,
        repeat=request.repeat,
        key=request.key,
        prompt_tokens=given,
        tokens=tokens,
        stopped=stopped,
        steps=account.steps,
        nfe_forward=account.nfe_forward,
        n_backward=account.n_backward,
        flop_equiv=account.flop_equiv,
        seconds=account.seconds,
    )
