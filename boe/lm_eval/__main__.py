"""``python -m boe.lm_eval``: the lm-eval command with boe in it."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import torch

from boe.denoisers import UnsupportedModel
from boe.files import prepare_directory
from boe.lm_eval import MODEL, PROTOCOLS, register
from boe.lm_eval.costs import failures_in, read_costs, summary_lines
from boe.lm_eval.loading import source_of
from boe.lm_eval.settings import EvaluationSettings


def main() -> None:
    """Run lm-eval's command line.

    The model ``boe`` and the folder of protocols are added. With ``--output_path`` the
    costs of every request are kept there too, unless the argument ``costs`` says where.
    Exits with 1 if requests failed and were kept, or if a checkpoint, data or a folder cannot
    be used, with 2 if an argument does not fit.
    """
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    register()
    setup_logging()
    harness = HarnessCLI()
    arguments = harness.parse_args()
    if hasattr(arguments, "include_path"):
        own = arguments.include_path
        arguments.include_path = [str(PROTOCOLS), *([own] if own else [])]
    settings = None
    if getattr(arguments, "model", None) == MODEL:
        try:
            settings = _settings_of(arguments)
        except (ValueError, TypeError) as error:
            # Before the model and the data are loaded, and without a traceback.
            _end(error, 2)
        except OSError as error:
            _end(error, 1)
    shared_out = settings is not None and settings.tensor_parallel > 1
    leads = os.environ.get("RANK", "0") == "0"
    if settings is not None and shared_out and not leads:
        from boe.lm_eval.model import BoeLM

        BoeLM(**asdict(settings)).follow()
        return
    try:
        harness.execute(arguments)
    except (OSError, UnsupportedModel) as error:
        # A checkpoint, data or a folder of results that cannot be used.
        _end(error, 1)
    if shared_out:
        from boe.scaling.rank_group import RankGroup

        RankGroup.joined().agree(None)
    if settings is not None and settings.costs is not None and leads:
        from boe.lm_eval.model import BoeLM

        print("\n".join(summary_lines(settings.costs, BoeLM.last_fingerprint)))
        if failures_in(read_costs(settings.costs, BoeLM.last_fingerprint)):
            raise SystemExit(1)


def _end(error: Exception, status: int) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(status) from None


def _settings_of(arguments: Namespace) -> EvaluationSettings:
    """The settings that the model will be built with; puts ``costs`` into the arguments.

    Raises:
        ValueError, TypeError: an argument does not fit. OSError: results cannot be written.
    """
    from lm_eval.utils import sanitize_model_name

    given = dict(arguments.model_args or {})
    folder: Path | None = None
    if arguments.device is None and not arguments.config:
        # lm-eval would say cuda:0 where nothing is said.
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.output_path:
        place = Path(arguments.output_path)
        # Where lm-eval puts its results: a name with this ending is a file, another a folder.
        if place.suffix == ".json":
            folder = place.parent
        else:
            folder = place / sanitize_model_name(str(given.get("pretrained")))
        given.setdefault("costs", str(folder))
        arguments.model_args = given
    further = {
        name: getattr(arguments, name)
        for name in ("batch_size", "max_batch_size", "device")
        if getattr(arguments, name, None) is not None
    }
    if getattr(arguments, "trust_remote_code", False):
        further["trust_remote_code"] = True
    settings = EvaluationSettings.from_arguments(**{**given, **further})
    source_of(settings.pretrained)
    if settings.failures == "keep" and settings.costs is None:
        raise ValueError(
            "failures=keep needs a place for the records that name them: give --output_path, or "
            "costs=FOLDER"
        )
    for results in {Path(place) for place in (folder, settings.costs) if place is not None}:
        prepare_directory(results)
    return settings


if __name__ == "__main__":
    main()
