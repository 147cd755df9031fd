"""What a partly written Countdown answer already gets wrong."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from boe.tasks.scoring.countdown import is_solution
from boe.tasks.text.task import FILL
from boe.tasks.text.vocabulary import END


def breaks_rules(numbers: Sequence[int], target: int, answer: str) -> bool:
    """Whether no way to fill in the masks of ``answer`` can make it right, as far as is seen.

    Seen are: anything but the filling behind the end; numbers, complete between their
    neighbours, that are not there, or not so often; and, once no mask is left before the end,
    an expression that is no solution. What an expression with masks in it could still be
    worth is not looked into.

    Args:
        answer: the answer region, masks as ``_``.
    """
    expression, _, rest = answer.partition(END)
    if rest.strip(END + FILL):
        return True
    if FILL not in expression:
        # Without an end in it the answer fills its region.
        return not is_solution(expression, numbers, target)
    complete = Counter(int(n) for n in re.findall(rf"(?<![\d{FILL}])\d+(?![\d{FILL}])", answer))
    return bool(complete - Counter(numbers))
