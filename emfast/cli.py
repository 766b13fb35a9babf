"""The command `emfast`: finds the subcommand, and turns mistakes and interruptions into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from emfast.commands import COMMANDS

MISTAKES = (ValueError, TypeError, OSError, NotImplementedError, RuntimeError, ImportError)
PACKAGE = str(Path(__file__).resolve().parent)


class Terminated(BaseException):
    """SIGTERM arrived, as from a cluster that takes the node back."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    0: done. 2: a mistake of the user, told in one sentence on stderr (`EMFAST_DEBUG=1` shows the traceback).
    130 and 143: interrupted by Ctrl-C or SIGTERM; the same command resumes.

    Arguments:
        argv: The words after `emfast`; those of this process by default.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # --operator my_file.MyOperator
    try:
        with _terminations():
            return _dispatch(argv)
    except SystemExit as stop:  # --help, --print_config
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return _interrupted("Interrupted", 130, argv)
    except Terminated:
        return _interrupted("Terminated", 143, argv)
    except BrokenPipeError:  # emfast report | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MISTAKES as error:
        if os.environ.get("EMFAST_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        print(sentence(error), file=sys.stderr)
        return 2


def sentence(error: BaseException) -> str:
    """Returns an error as the one line that the user reads."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.strerror in text:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if type(error).__name__ == "OutOfMemoryError":
        text = "The device is out of memory: lower e_step.batch_size, m_step.batch_size or batch_size."
    text = " ".join(text.split()) or type(error).__name__
    return text if _ours(error) else f"{type(error).__name__}: {text} (EMFAST_DEBUG=1 shows where)"


def usage() -> str:
    """Returns the help of the command without a subcommand."""
    from emfast import __version__

    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: emfast COMMAND [options]",
            "",
            f"emfast {__version__}: train clean diffusion models from corrupted observations.",
            "",
            "commands:",
            *lines,
            "",
            "`emfast COMMAND --help` shows the options of a command.",
        ]
    )


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        from emfast import __version__

        print(__version__)
        return 0
    # Only the chosen command is imported, so that help and mistakes are quick.
    if argv[0] not in COMMANDS:
        from emfast.commands.parser import unknown

        raise ValueError(unknown("emfast", "a command", argv[0], COMMANDS))
    from emfast.commands.parser import parse

    module = importlib.import_module(f"emfast.commands.{argv[0]}")
    options, yaml = parse(argv[0], module.Options, argv[1:])
    module.run(options, yaml)
    return 0


def _ours(error: BaseException) -> bool:
    """Whether the error is a sentence of emfast or of the system rather than one from inside another library."""
    frames = traceback.extract_tb(error.__traceback__)
    raised = bool(frames) and frames[-1].filename.startswith(PACKAGE) and "raise" in (frames[-1].line or "")
    return raised or isinstance(error, OSError)


def _interrupted(what: str, code: int, argv: list[str]) -> int:
    resumable = bool(argv) and argv[0] in ("train", "restore")
    print(f"{what}. " + ("The same command resumes." if resumable else "Nothing was written."), file=sys.stderr)
    return code


@contextmanager
def _terminations() -> Iterator[None]:
    """Turns SIGTERM into an exception, in the main thread."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
