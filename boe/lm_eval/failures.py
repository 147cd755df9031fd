"""Requests that cannot be answered, and what becomes of the others.

An empty answer lowers a score without a word, so that none is given unless failures are
kept; each then stands in the cost records, in the results and in the command's last lines.
A likelihood has no value that would do for a failure: with any number a task of several
choices may come out right as well as wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from boe.lm_eval.requests import Asked

if TYPE_CHECKING:
    from lm_eval.api.model import CacheHook

# lm-eval's own keys are hexadecimal, so this one meets none of them.
_CACHE_KEY = "boe failures"
_SHOWN = 5

_log = logging.getLogger("lm-eval.boe")


class UnusablePrompt(ValueError):
    """A request whose texts the model cannot take; the message names it."""


class FailedRequests(RuntimeError):
    """Requests that have no result, and whose task therefore has no score."""


def reason(error: Exception) -> str:
    """The error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def warn(name: str, error: str) -> None:
    """Say that a request failed and that the others go on."""
    _log.warning("%s failed, the others go on: %s", name, error)


def without_likelihood(failed: Sequence[tuple[Asked, Exception]]) -> FailedRequests:
    """What is raised when all other likelihoods are there."""
    named = "; ".join(f"{request.name}: {reason(error)}" for request, error in failed[:_SHOWN])
    more = f"; and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
    return FailedRequests(
        f"{len(failed)} likelihoods could not be computed, and no number can stand for one. The "
        f"others are in the cache, if there is one. {named}{more}"
    )


def forget_failures(cache: Any) -> None:
    """Take the answers of failed requests out of lm-eval's cache, so that they are tried again."""
    for key in cache.get(_CACHE_KEY, ()):
        cache.pop(key, None)
    cache.pop(_CACHE_KEY, None)


def mark_failures(hook: CacheHook, failed: Sequence[Asked]) -> None:
    """Note in lm-eval's cache which answers are those of failures.

    lm-eval puts every answer that it gets into its cache, after the model has returned:
    they cannot be kept out of it, and are removed when it is used next.
    """
    if hook.dbdict is None or not failed:
        return
    from lm_eval.api.model import hash_args

    keys = {hash_args(one.instance.request_type, one.instance.args) for one in failed}
    hook.dbdict[_CACHE_KEY] = sorted(keys | set(hook.dbdict.get(_CACHE_KEY, ())))
