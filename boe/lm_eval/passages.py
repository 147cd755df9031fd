"""Requests for likelihoods as passages of ids."""

from __future__ import annotations

from boe.lm_eval.failures import UnusablePrompt
from boe.lm_eval.likelihood import Passage, windows
from boe.lm_eval.requests import Asked
from boe.text.tokenization import Texts


def continuation(
    texts: Texts, longest: int | None, truncate: bool, request: Asked
) -> list[Passage]:
    """The one passage of a continuation, with its context before it.

    Args:
        longest: positions that the model takes.
        truncate: cut the beginning off contexts that are too long.

    Raises:
        UnusablePrompt: too long, without a token of its own, or it holds the mask token.
    """
    context, text = request.instance.args
    try:
        before, scored = texts.encode_pair(context, text)
    except ValueError as error:
        raise UnusablePrompt(f"{request.name}: {error}") from error
    closing = texts.suffix
    if before:
        opening, before = texts.opened(before)
    else:
        opening, rest = texts.opened(scored)
        opening = [] if len(rest) < len(scored) else opening
    excess = len(opening) + len(before) + len(scored) + len(closing) - (longest or 0)
    if longest is not None and excess > 0:
        if excess > len(before) or not truncate:
            raise UnusablePrompt(
                f"{request.name}: its texts have {excess} tokens more than the {longest} "
                "positions of the model; truncate=true cuts the beginning of contexts off"
            )
        before = before[excess:]
    return [Passage((*opening, *before), tuple(scored), tuple(closing), str(request.key))]


def whole_text(texts: Texts, longest: int | None, request: Asked) -> list[Passage]:
    """The windows of a text.

    Raises:
        UnusablePrompt: it holds the mask token.
    """
    (text,) = request.instance.args
    try:
        ids = texts.encode(text)
    except ValueError as error:
        raise UnusablePrompt(f"{request.name}: {error}") from error
    # Where the text begins with it, it is given, too, and not scored.
    opening, ids = texts.opened(ids)
    return windows(ids, opening, texts.suffix, longest, str(request.key))
