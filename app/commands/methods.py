"""hra-diffusion methods: list the registered adapter methods and their options."""

import argparse

from app.commands.common import add_base, print_result
from hra_diffusion.adapters import registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    methods = [registry.get_method(name) for name in registry.method_names()]
    text = "\n\n".join(describe(method) for method in methods)
    print_result(arguments, text, {"methods": [facts(method) for method in methods]})


def describe(method: registry.Method) -> str:
    """Format a method with its options as text."""
    lines = [f"{method.name:8} {method.title}: {method.summary} ({method.paper})"]
    for name, field in method.options.items():
        lines.append(f"{'':10}--{name.replace('_', '-')}, default {field.default}: {field.description}")
    return "\n".join(lines)


def facts(method: registry.Method) -> dict:
    """Return a method as JSON values; its options as a JSON schema."""
    fields = method.config.model_json_schema()["properties"]
    return {
        "name": method.name,
        "title": method.title,
        "summary": method.summary,
        "paper": method.paper,
        "starts_at_base": method.starts_at_base(method.parse({})),
        "options": {name: fields[name] for name in method.options},
    }
