"""The command line: `splitwiser plan`, `simulate`, `run`, `calibrate`, and what there is to name.

This module declares the commands; each is imported when it is called, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from splitwiser.cli.console import complain
from splitwiser.cli.progress import INTERRUPTED

BAD_INPUT = 2
BROKEN_PIPE = 141  # 128 + SIGPIPE


def _version() -> str:
    from splitwiser import __version__

    return __version__


app = App(
    name="splitwiser",
    help="How should prefill and decode share one GPU, and what will it carry?",
    help_format="plaintext",
    version=_version,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for _name, _help in (
    ("plan", "Rank the deployments of a model on a GPU by the traffic they carry."),
    ("simulate", "Serve traffic with one deployment and print vLLM's benchmark block."),
    ("calibrate", "Measure a device, or read tables, and fit a cost profile to them."),
    ("traces", "List the traffic presets; describe or convert a trace file."),
    ("gpus", "List the GPUs, or describe one: its data sheet and source."),
    ("llms", "List the models, or describe one: its shape and memory."),
    ("profiles", "List the cost profiles, or describe one: each constant and its source."),
):
    app.command(f"splitwiser.cli.{_name}:app", name=_name, help=_help)
app.command(
    "splitwiser.cli.execute:app",  # a module `run` would take the place of the function below
    name="run",
    help="Serve traffic for real, with one deployment on this machine's device.",
)


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit status.

    0 is success, 1 a plan without a deployment or a run that failed, 2 bad input (one line on
    stderr, no traceback), 130 an interrupt, 141 a reader of stdout that went away.
    """
    try:
        status = app(list(argv), exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except BrokenPipeError:
        # Python would flush stdout once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except (CycloptsError, ValueError, OSError, MemoryError) as error:
        complain(str(error) or type(error).__name__)
        return BAD_INPUT


def main() -> None:
    """Run the process's own command line, and exit: the entry point of the `splitwiser` script."""
    sys.exit(run(sys.argv[1:]))
