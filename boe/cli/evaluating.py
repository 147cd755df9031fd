"""``boe eval``: studies from plan files, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from boe.cli.ablating import run_ablation
from boe.cli.comparing import run_comparison
from boe.cli.judging_scores import run_fidelity
from boe.cli.output import console_for
from boe.cli.plans import AblatePlan, ComparePlan, FidelityPlan, read_plan
from boe.cli.running import StudyRunner, run_visibly


def run_plans(
    paths: Sequence[Path], output: Path | None, run_by: StudyRunner = run_visibly
) -> bool:
    """Run every plan, resuming what was interrupted; whether all are complete.

    Args:
        output: where results go; beside each plan by default.
        run_by: decodes what is missing.

    Raises:
        ValueError: a plan that cannot be read, one output for several plans, or a plan of a
            kind that ``run_by`` is not for. All plans are read before the first is run.
    """
    if output is not None and len(paths) > 1:
        raise ValueError(f"output is for one plan, got {len(paths)} plans")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"plan {path} is not a file")
    plans = [read_plan(path) for path in paths]
    for path, plan in zip(paths, plans, strict=True):
        if run_by is not run_visibly and isinstance(plan, FidelityPlan):
            raise ValueError(f"{path}: a plan of kind fidelity cannot be run in shards")
    console = console_for()
    for path, plan in zip(paths, plans, strict=True):
        console.print(f"{path}", style="bold", soft_wrap=True)
        directory = path.parent if output is None else output
        if isinstance(plan, ComparePlan):
            study, references = plan.study, plan.references
            complete = run_comparison(
                study, None, None, directory, references, run_by=run_by
            ).complete
        elif isinstance(plan, AblatePlan):
            complete = run_ablation(plan, None, None, directory, run_by).complete
        else:
            complete = run_fidelity(plan, None, None, directory).complete
        if not complete:
            return False
    return True
