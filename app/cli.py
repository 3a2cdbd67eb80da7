"""The command line: ``hra-diffusion COMMAND …``. A command's module is imported only when it is called."""

import argparse
import importlib
import io
import json
import keyword
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from hra_diffusion.libraries import hide_bitsandbytes

COMMANDS = {
    "app": "the web page: teach, create, compare and keep in a browser",
    "train": "teach a subject: photos in, an adapter out",
    "generate": "draw pictures with adapters",
    "compare": "set adapters and the base side by side, from the same noise",
    "export": "an adapter as a file that other tools load",
    "import": "a stranger's adapter file as one of yours",
    "adapters": "list the adapters you have",
    "show": "what an adapter file or a picture says of itself",
    "bases": "list the base models you have, download others",
    "methods": "the adapter methods and their options",
    "bench": "what learning and drawing cost on this machine",
    "demo": "train HRA and LoRA on a sample subject and compare them",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 an error that is explained, 2 wrong usage, 130 stopped."""
    if argv is None:  # as a program: whoever calls it from Python may want bitsandbytes
        hide_bitsandbytes()
    argv = list(sys.argv[1:] if argv is None else argv)
    _set_output(errors="backslashreplace")  # a pipe or file on Windows may have no "→"; standard error does so itself
    overview = _overview()
    if not argv or argv[0] not in COMMANDS:
        overview.parse_args(argv or ["--help"])
        return 2
    _quieten()
    module = f"{argv[0]}_" if keyword.iskeyword(argv[0]) else argv[0]
    command = importlib.import_module(f"app.commands.{module}")
    parser = argparse.ArgumentParser(f"hra-diffusion {argv[0]}", description=COMMANDS[argv[0]].capitalize() + ".")
    command.add_arguments(parser)
    arguments = parser.parse_args(argv[1:])
    if getattr(arguments, "json", False):
        _set_output(encoding="utf-8")  # as JSON is
    return run(command, arguments)


def run(command, arguments: argparse.Namespace) -> int:
    """Run a parsed command and turn what a person can put right into a message and an exit code."""
    from hra_diffusion.errors import Note, UserError
    from hra_diffusion.files import ignore_broken_pipe

    try:
        with ignore_broken_pipe(), warnings.catch_warnings():
            warnings.simplefilter("ignore" if getattr(arguments, "quiet", False) else "always", Note)
            warnings.showwarning = _show
            command.run(arguments)
    except UserError as error:
        return _fail(str(error), arguments)
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
        description="Teach Stable Diffusion a subject from a handful of photos, and compare the ways of doing it.",
        epilog="hra-diffusion COMMAND --help tells a command's options.",
    )
    parser.add_argument("--version", action="version", version=version("hra-diffusion"))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


def _fail(message: str, arguments: argparse.Namespace) -> int:
    if getattr(arguments, "json", False):
        print(json.dumps({"error": message}, ensure_ascii=False))
    print(f"error: {message}", file=sys.stderr)
    return 1


def _show(message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Print a Note without the line of code it comes from, other warnings as Python prints them."""
    from hra_diffusion.errors import Note

    text = f"note: {message}\n" if issubclass(category, Note) else warnings.formatwarning(message, category, *place[:2])
    sys.stderr.write(text)


def _set_output(encoding: str | None = None, errors: str | None = None) -> None:
    """Change how standard output is encoded, where it is a stream of the system's."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding=encoding, errors=errors)


def _quieten() -> None:
    """Notes of the libraries below are not ours to show; a person's own settings are kept."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


if __name__ == "__main__":
    sys.exit(main())
