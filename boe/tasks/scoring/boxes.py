"""Finding ``\\boxed{…}`` in generations."""

from __future__ import annotations


def last_boxed(text: str) -> str | None:
    """Content of the last ``\\boxed{…}`` (or ``\\fbox{…}``), braces balanced; ``None`` if none.

    ``\\boxed x`` without braces ends at the next ``$``, as in Hendrycks et al.'s scorer.
    """
    for command in (r"\boxed", r"\fbox"):
        start = text.rfind(command)
        if start < 0:
            continue
        rest = text[start + len(command) :]
        if rest.startswith(" "):
            return rest[1:].split("$")[0]
        opened = rest.find("{")
        depth = 0
        for k in range(max(opened, 0), len(rest)):
            depth += (rest[k] == "{") - (rest[k] == "}")
            if depth == 0 and rest[k] == "}":
                return rest[opened + 1 : k]
        return None
    return None
