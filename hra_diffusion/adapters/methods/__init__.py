"""The adapter methods, one file each. Importing this package registers them all: a new file is found by itself."""

import importlib
import pkgutil

COMPARED = ("hoft", "hra", "lora", "moslora", "shoft")
"""The methods that benchmarks compare, in the order in which they are listed; the others follow by name."""

REPRESENTATIVE = ("lora", "hra", "hoft")
"""The methods of a quick comparison: one that adds to the weight, one rotation, and one on both sides."""

for _name in sorted(
    (module.name for module in pkgutil.iter_modules(__path__)), key=lambda name: (name not in COMPARED, name)
):
    importlib.import_module(f"{__name__}.{_name}")
