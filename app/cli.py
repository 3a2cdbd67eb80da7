"""Command line: ``hra-diffusion COMMAND …``. The module of a command is imported only when the command runs."""

import argparse
import errno
import importlib
import io
import json
import keyword
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from hra_diffusion.errors import shown
from hra_diffusion.libraries import BITSANDBYTES, PEFT, hide
from hra_diffusion.names import is_text

COMMANDS = {
    "app": "start the web page: train, generate, compare and manage adapters in the browser",
    "train": "train an adapter on photos of a subject",
    "caption": "write captions for photos with a captioning model",
    "runs": "list the training runs, stop or resume them",
    "worker": "train the waiting runs, for ever, as a service of the system",
    "reindex": "make the index of runs and adapters anew from the files",
    "backup": "write an output folder with its runs, adapters and photos into one file",
    "restore": "restore a backup into a new output folder",
    "generate": "generate pictures with adapters",
    "serve": "draw pictures with many adapters for other programs, over HTTP in OpenAI's form",
    "compare": "compare adapters and the base model on the same prompts and noise",
    "grid": "generate a grid of pictures over two settings, such as steps and guidance, from the same noise",
    "export": "export an adapter to a format that other programs load",
    "publish": "upload an adapter to the Hugging Face hub, with a model card",
    "import": "import an adapter file from another program",
    "adapters": "list your adapters",
    "show": "show the metadata of an adapter or a picture",
    "bases": "list the base models you have, download others",
    "methods": "list the adapter methods and their options",
    "benchmark": "compare methods on subjects, with intervals, under equal budgets",
    "bench": "measure the time and memory of training and generation on this machine",
    "demo": "train HRA and LoRA on a sample subject and compare them",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0 success, 1 a reported error, 2 wrong usage, 130 interrupted."""
    if argv is None:  # run as a program; a Python caller may use them
        hide(BITSANDBYTES, PEFT)
    argv = list(sys.argv[1:] if argv is None else argv)
    if odd := [argument for argument in argv if not is_text(argument)]:
        print(f"error: the argument {shown(odd[0])} is not UTF-8 text; rename the file or folder", file=sys.stderr)
        return 2
    _set_output(errors="backslashreplace")  # code pages of Windows have no "→"; standard error escapes by itself
    overview = _overview()
    if not argv or argv[0] not in COMMANDS:
        overview.parse_args(argv or ["--help"])
        return 2
    _silence_libraries()
    command, parser = load_command(argv[0])
    arguments = parser.parse_args(argv[1:])
    if getattr(arguments, "json", False):
        _set_output(encoding="utf-8")  # required by JSON
    return run(command, arguments)


def load_command(name: str) -> tuple[Any, argparse.ArgumentParser]:
    """Import the module of a command; return it with its argument parser."""
    command = importlib.import_module(f"app.commands.{name}_" if keyword.iskeyword(name) else f"app.commands.{name}")
    parser = argparse.ArgumentParser(f"hra-diffusion {name}", description=COMMANDS[name].capitalize() + ".")
    command.add_arguments(parser)
    return command, parser


def run(command, arguments: argparse.Namespace) -> int:
    """Run a parsed command; report errors that the user can fix, and return the exit code."""
    from hra_diffusion.errors import Note, UserError
    from hra_diffusion.files import ignore_broken_pipe

    try:
        with ignore_broken_pipe(), warnings.catch_warnings():
            warnings.simplefilter("ignore" if getattr(arguments, "quiet", False) else "always", Note)
            warnings.showwarning = _show_warning
            command.run(arguments)
    except UserError as error:
        return _fail(str(error), arguments)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return _fail(f"{shown(error.filename)} is too long for a path", arguments)
    except MemoryError as error:
        return _fail(f"out of memory ({error}); try a smaller --batch-size or --resolution", arguments)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        return _fail(
            f"out of memory; try a smaller --batch-size or --resolution, or --dtype bfloat16 ({error})", arguments
        )
    return 0


def _overview() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "hra-diffusion",
        description="Train adapters for Stable Diffusion on a few photos of a subject, and compare adapter methods.",
        epilog="hra-diffusion COMMAND --help shows the options of a command.",
    )
    parser.add_argument("--version", action="version", version=version("hra-diffusion"))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


def _fail(message: str, arguments: argparse.Namespace) -> int:
    message = re.sub(r"\S{1000,}", lambda found: f"{found[0][:100]}…", message)  # arguments may be of any length
    if getattr(arguments, "json", False):
        print(json.dumps({"error": message}, ensure_ascii=False))
    print(f"error: {message}", file=sys.stderr)
    return 1


def _show_warning(message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Print a Note as one line, without its source location; print other warnings as Python does."""
    from hra_diffusion.errors import Note

    text = f"note: {message}\n" if issubclass(category, Note) else warnings.formatwarning(message, category, *place[:2])
    sys.stderr.write(text)


def _set_output(encoding: str | None = None, errors: str | None = None) -> None:
    """Change the encoding of standard output, unless it was replaced by another stream."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding=encoding, errors=errors)


def _silence_libraries() -> None:
    """Hide messages of diffusers and transformers, unless the user has set their verbosity."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


if __name__ == "__main__":
    sys.exit(main())
