"""Cost records of requests."""

from __future__ import annotations

from collections.abc import Sequence

from boe.decoding import Account
from boe.lm_eval.costs import CostRecord
from boe.lm_eval.generation import Answer
from boe.lm_eval.likelihood import Passage
from boe.lm_eval.requests import Asked


def record_of_answer(answer: Answer) -> CostRecord:
    """What an answer took."""
    prompt = answer.prompt
    given = len(prompt.canvas) - prompt.wish.gen_length
    return record_of(prompt.asked, given, answer.tokens, answer.stopped, answer.account)


def record_of_bound(request: Asked, passages: Sequence[Passage], account: Account) -> CostRecord:
    """What a likelihood took, over all its passages."""
    given = sum(len(passage.before) + len(passage.after) for passage in passages)
    scored = sum(len(passage.scored) for passage in passages)
    return record_of(request, given, scored, False, account)


def record_of(
    request: Asked,
    given: int = 0,
    tokens: int = 0,
    stopped: bool = False,
    account: Account | None = None,
) -> CostRecord:
    """A record; of a request that nothing was done for if only that is given."""
    instance, account = request.instance, account or Account()
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
