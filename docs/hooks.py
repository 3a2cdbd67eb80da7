"""What the documentation takes from the code while it is built: the command line, tables of methods, error messages."""

import argparse
import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hra_diffusion", "training", "app")
MARK = re.compile(r"<!-- generated: (\w+)([^>]*?) -->")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated whole."""
    files.append(File.generated(config, "cli.md", content=command_line()))
    for page, sample in (("demo", "demo"), ("toybox", "drawn")):
        image = ROOT / "assets" / "samples" / f"{sample}.png"
        files.append(File.generated(config, f"images/{page}.png", abs_src_path=str(image)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put generated parts in place of their marks."""
    return MARK.sub(lambda found: GENERATORS[found[1]](found[2].strip()), markdown)


def on_post_build(**_: object) -> None:
    """Fail if an error message of the packages has no place in the troubleshooting page."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    covered = [prefix for name, prefixes in MARK.findall(text) if name == "errors" for prefix in prefixes.split()]
    if lost := [file for file in error_messages() if not any(file.startswith(prefix) for prefix in covered)]:
        raise PluginError(f"docs/troubleshooting.md has no section for the errors of {', '.join(lost)}")


def command_line() -> str:
    """The reference of all commands, from their argument parsers."""
    from app.cli import COMMANDS, load_command

    parts = ["# Command line\n\n`hra-diffusion COMMAND --help` prints the same text. Generated from the parsers.\n"]
    for name, summary in COMMANDS.items():
        _, parser = load_command(name)
        parts.append(f"## {name}\n\n{summary[:1].upper()}{summary[1:]}.\n")
        parts += [_options(group) for group in parser._action_groups]
    return "\n".join(part for part in parts if part)


def _options(group: argparse._ArgumentGroup) -> str:
    rows = []
    for action in group._group_actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
        value = action.metavar or choices or action.dest.upper()
        value = " ".join(value) if isinstance(value, tuple) else value
        takes_value = action.option_strings and action.nargs != 0
        names = ", ".join(action.option_strings) or (action.metavar or action.dest)
        flag = f"{names} {value}" if takes_value else str(names)
        text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
        rows.append(f"| `{_cell(flag)}` | {_cell(_escape(text))} |")
    if not rows:
        return ""
    title = "Arguments" if group.title == "positional arguments" else group.title or ""
    return "\n".join([f"**{title[:1].upper()}{title[1:]}**\n", "| flag | meaning |", "|---|---|", *rows, ""])


def compatibility(_: str) -> str:
    """Which programs load which export."""
    from hra_diffusion.interop import compatibility

    return compatibility.markdown()


def method_options(_: str) -> str:
    """Every method's options with their defaults."""
    from hra_diffusion.adapters import methods, registry  # noqa: F401

    rows = ["| method | option | default | meaning |", "|---|---|---|---|"]
    for name in registry.method_names():
        method = registry.get_method(name)
        for option, field in method.options.items():
            default = "required" if field.is_required() else field.default
            rows.append(f"| {method.title} | `{option}` | {default} | {_cell(field.description or '')} |")
    return "\n".join(rows)


def errors(prefixes: str) -> str:
    """The error messages raised in files whose path starts with one of the prefixes."""
    found = error_messages()
    files = [file for file in sorted(found) if file.startswith(tuple(prefixes.split()))]
    messages = dict.fromkeys(text for file in files for text in found[file])
    listed = "\n".join(f"    - {_escape(text)}" for text in messages)
    return f'??? note "All messages ({len(messages)})"\n\n{listed}\n'


@functools.cache  # every section of the page takes its part
def error_messages() -> dict[str, list[str]]:
    """The messages of every UserError raised, by file; "…" stands for a value."""
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
             for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}  # fmt: skip
    classes = {"UserError"}
    for _ in range(3):  # subclasses of subclasses
        classes |= {node.name for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
                    and any(isinstance(base, ast.Name) and base.id in classes for base in node.bases)}  # fmt: skip
    found: dict[str, list[str]] = defaultdict(list)
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                name = getattr(node.exc.func, "id", getattr(node.exc.func, "attr", ""))
                text = "".join(_text(node.exc.args[0]))
                if name in classes and text.strip("… "):
                    found[file].append(text)
    return dict(found)


def _text(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        for value in node.values:
            yield from _text(value)
    elif isinstance(node, ast.BinOp):
        yield from (*_text(node.left), *_text(node.right))
    else:
        yield "…"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _escape(text: str) -> str:
    return re.sub(r"([<>*_\[\]{}])", r"\\\1", text)


GENERATORS = {"compatibility": compatibility, "method_options": method_options, "errors": errors}
