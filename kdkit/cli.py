"""The ``kdkit`` command: dispatch, help and what becomes of errors. Imports nothing heavy before it is needed."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from kdkit import __version__
from kdkit.errors import ConfigError, KdkitError, KdkitWarning, closest, did_you_mean

__all__ = ["main"]

HYDRA_COMMANDS = ("distill", "train", "cache", "evaluate", "compare")
COMMANDS = (*HYDRA_COMMANDS, "report", "ls")
_PYTHON_FORMAT = warnings.formatwarning

HELP = """\
kdkit: compress a teacher network into a student by knowledge distillation, for images and text.

Usage: kdkit COMMAND [key=value …]

Commands:
  distill    A student learns from a teacher.
               kdkit distill experiment=digits 'loss=[ce,nkd]' weights.nkd=0.5
  train      A network alone, teacher or student.
               kdkit train experiment=digits network=teacher
  cache      What a teacher answers to every training sample, kept on disk for students to come.
               kdkit cache experiment=stdlib_lm cache.k=64
  evaluate   Metrics of a finished run's student.
               kdkit evaluate run=runs/digits/…
  compare    Several losses times several seeds, one leaderboard.
               kdkit compare experiment=digits 'losses=[ce,kd,js]' seeds=5
               kdkit compare experiment=digits budget=10m
  report     Write report.html and report.md of finished runs again, side by side if there are several.
               kdkit report runs/digits/…
  ls         What there is to choose from: losses, recipes, models, data, or the layers of a network.
               kdkit ls losses
               kdkit ls models 'resnet*'
               kdkit ls layers model=NAME

Settings follow Hydra's grammar: choose options with group=option and 'loss=[ce,kd]', change values with
a.b=value, run one job per value with a.b=1,2,3 -m, add recipes of your own with --config-dir FOLDER.
  kdkit distill --help       the groups and their options
  kdkit distill --cfg job    the settings as they would be used; nothing runs

Options:
  -h, --help      show this text
  -V, --version   show the version

Exit status: 0 done, 1 a fault of kdkit, 2 a mistake in the settings, data or files, 130 interrupted (a run that
was stopped with Ctrl-C goes on with resume=FOLDER). HYDRA_FULL_ERROR=1 shows the traceback of any error.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: the words after ``kdkit``; by default those of the process.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    warnings.formatwarning = _format_warning
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        print("kdkit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        return _failed(error)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    if issubclass(category, KdkitWarning):
        return f"kdkit: warning: {message}\n"
    return _PYTHON_FORMAT(message, category, filename, lineno, line)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    command, rest = words[0], words[1:]
    if command in ("-V", "--version"):
        print(f"kdkit {__version__}")
    elif command in HYDRA_COMMANDS:
        from kdkit._config.app import run_command

        run_command(command, rest)
    elif command == "report":
        _report(rest)
    elif command == "ls":
        from kdkit._config.listing import list_topic

        list_topic(rest)
    else:
        raise _unknown(command)
    return 0


def _unknown(command: str) -> ConfigError:
    if "=" in command or command.startswith("-"):
        return ConfigError(f"the command comes first, got {command!r}; write kdkit distill {command}")
    near = did_you_mean(command, COMMANDS) if closest(command, COMMANDS) else f"; choose from {', '.join(COMMANDS)}"
    return ConfigError(f"unknown command {command!r}{near}")


def _report(words: list[str]) -> None:
    if words and words[0] in ("-h", "--help"):
        print(
            "kdkit report RUN…: write report.html and report.md of finished runs again.\n\n  kdkit report runs/digits/…"
        )
        return
    if not words:
        raise ConfigError("report needs the folders of runs: kdkit report runs/digits/…")
    missing = [word for word in words if not Path(word).is_dir()]
    if missing:
        raise ConfigError(
            f"report takes folders of runs, and {missing[0]!r} is none; a run prints its folder at the end"
        )
    from kdkit.report import print_comparison, write_reports

    written = write_reports(words)
    for word in words:
        if (Path(word) / "compare.json").is_file():
            print_comparison(word)
    for path in written:
        print(path)


def _failed(error: Exception) -> int:
    """Print an error in one line; its traceback goes to the terminal on request, else to a file if it is our fault."""
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    known = _known(error)
    if full:
        traceback.print_exception(error)
    if known is not None:
        print(f"kdkit: {' '.join(str(known).split())}", file=sys.stderr)
        return 2
    where = "above" if full else f"in {_keep_traceback(error)}"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"kdkit: internal error: {text}; the traceback is {where}, please report it", file=sys.stderr)
    return 1


def _known(error: Exception) -> KdkitError | None:
    if isinstance(error, KdkitError):
        return error
    if "hydra" not in sys.modules:
        return None
    from kdkit._config.explain import explain

    return explain(error)


def _keep_traceback(error: Exception) -> str:
    handle, path = tempfile.mkstemp(prefix="kdkit-error-", suffix=".log", text=True)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    return path


if __name__ == "__main__":
    sys.exit(main())
