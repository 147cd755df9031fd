"""One of two processes: runs ``boe`` commands one after another, and notes what it showed.

``python two_rank_commands.py FOLDER COMMANDS``; the commands are a JSON list of lists.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from typer.testing import CliRunner

from boe.cli.app import app
from boe.scaling.rank_group import RankGroup


def main(folder: Path, commands: list[list[str]]) -> None:
    leave = RankGroup.leave
    # One rendezvous for all commands.
    RankGroup.leave = lambda self: None  # type: ignore[method-assign]
    shown = []
    for command in commands:
        result = CliRunner().invoke(app, command, input="w3 w4 w5\n")
        error = "" if result.exception is None else str(result.exception)
        shown.append({"exit": result.exit_code, "out": result.stdout, "error": error})
    leave(None)  # type: ignore[arg-type]
    (folder / f"shown{os.environ['RANK']}.json").write_text(json.dumps(shown))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
