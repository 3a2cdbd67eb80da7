# One list of the public names, for type checkers and for the lazy import in __init__.py.
from .adapters.registry import get_method, method_names
from .comparison.compare import Comparison, Variant, compare
from .comparison.storage import save_comparison
from .generation.png import save_png
from .generation.requests import Request, Settings
from .generation.sampling import generate, generate_batch
from .interop import export, import_adapter
from .models.loading import load_base
from .pipeline import (
    activate,
    active,
    attach,
    detach,
    disabled,
    frozen,
    load,
    loaded,
    merge,
    print_trainable_parameters,
    save,
    status,
    unload,
    unmerge,
)

__version__: str
__all__ = [
    "Comparison",
    "Request",
    "Settings",
    "Variant",
    "activate",
    "active",
    "attach",
    "compare",
    "detach",
    "disabled",
    "export",
    "frozen",
    "generate",
    "generate_batch",
    "get_method",
    "import_adapter",
    "load",
    "load_base",
    "loaded",
    "merge",
    "method_names",
    "print_trainable_parameters",
    "save",
    "save_comparison",
    "save_png",
    "status",
    "unload",
    "unmerge",
]
