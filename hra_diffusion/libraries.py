"""Control what third-party libraries import and log."""

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from typing import Any

BITSANDBYTES, PEFT = "bitsandbytes", "peft"


@contextlib.contextmanager
def only_errors_logged() -> Iterator[None]:
    """Within the block, let diffusers, transformers and bitsandbytes log errors only, unless their level was changed.

    On import transformers would log that torchvision is missing, and bitsandbytes that a CPU kernel is.
    """
    for name in ("diffusers", "transformers"):
        importlib.import_module(f"{name}.utils.logging")  # sets the library's level
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", BITSANDBYTES)]
    levels = {logger: logger.level for logger in loggers if logger.getEffectiveLevel() == logging.WARNING}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def hide(*libraries: str) -> None:
    """Prevent imports of libraries in this process: of bitsandbytes until ``import_bitsandbytes`` is called.

    diffusers imports bitsandbytes and PEFT if they are installed, which takes seconds; bitsandbytes may look for CPU
    kernels on the network. No part of this program uses PEFT.
    """
    for library in libraries:
        sys.modules.setdefault(library, None)  # type: ignore[arg-type]  # None makes an import fail


def bitsandbytes_installed() -> bool:
    """Whether bitsandbytes can be imported, hidden or not."""
    return PathFinder.find_spec(BITSANDBYTES) is not None


def import_bitsandbytes() -> Any:
    """Import bitsandbytes, hidden or not. Raises ImportError if it is not installed."""
    if BITSANDBYTES in sys.modules and sys.modules[BITSANDBYTES] is None:
        del sys.modules[BITSANDBYTES]
    with only_errors_logged():
        return importlib.import_module(BITSANDBYTES)


def hide_loading_bars() -> None:
    """Disable the progress bars of diffusers and transformers in this process."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
