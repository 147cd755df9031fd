"""Short sums with missing digits after solved examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from boe.tasks.sums.columns import SumLayout
from boe.tasks.sums.task import SumsDifficulty, SumsTask
from boe.tasks.text.few_shot import FewShotTask, few_shot_template
from boe.tasks.text.model import ModelShape
from boe.tasks.text.task import FILL, GIVEN
from boe.training import TrainConfig


class ShortSumsTask(SumsTask):
    """The task ``sums`` with numbers of two digits. No denoiser is shipped for it alone.

    Raises:
        FileNotFoundError: from ``denoiser``.
    """

    name = "sums-short"
    layout = SumLayout(2)
    template = layout.text(GIVEN, FILL)
    difficulties: ClassVar[Mapping[str, SumsDifficulty]] = {
        "easy": SumsDifficulty(5),
        "medium": SumsDifficulty(4),
        "hard": SumsDifficulty(3),
    }
    weights = Path(__file__).parent / "short_weights"


class FewShotSumsTask(FewShotTask):
    """Restore the digits that are missing from a sum, after four solved examples.

    ``.7+..=1..:`` is answered by the whole sum, such as ``87+15=102``, as in the task ``sums``,
    but numbers have two digits. The examples are of the same difficulty, and the prompt is
    thirteen times as long as what is to be filled in.
    """

    name = "sums-fewshot"
    single = ShortSumsTask
    template = few_shot_template(ShortSumsTask.template)
    difficulties = ShortSumsTask.difficulties
    training_mix = ShortSumsTask.training_mix
    shape = ModelShape(layers=3, width=128)
    recipe = TrainConfig(steps=4000, batch_size=32, learning_rate=2e-3)
    weights = Path(__file__).parent / "few_shot_weights"
