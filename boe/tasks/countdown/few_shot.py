"""Countdown after solved examples."""

from __future__ import annotations

from pathlib import Path

from boe.tasks.countdown.task import CountdownTask
from boe.tasks.text.few_shot import FewShotTask, few_shot_template
from boe.tasks.text.model import ModelShape
from boe.training import TrainConfig


class FewShotCountdownTask(FewShotTask):
    """Countdown with three numbers after four solved examples.

    The problem, its difficulties and the verdicts are those of the task ``countdown``. The
    examples are of the same difficulty, and the prompt is ten times as long as the answer.
    """

    name = "countdown-fewshot"
    single = CountdownTask
    template = few_shot_template(CountdownTask.template)
    difficulties = CountdownTask.difficulties
    training_mix = CountdownTask.training_mix
    shape = ModelShape(layers=4, width=128)
    recipe = TrainConfig(steps=9000, batch_size=32, learning_rate=2e-3)
    weights = Path(__file__).parent / "few_shot_weights"
