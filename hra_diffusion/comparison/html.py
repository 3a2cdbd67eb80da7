"""HTML and SVG from the templates beside this file. Every value is escaped."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_ENVIRONMENT = Environment(
    loader=PackageLoader("hra_diffusion.comparison"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


def render(template: str, **values: Any) -> str:
    """Render a template from ``templates/``."""
    return _ENVIRONMENT.get_template(template).render(values)
