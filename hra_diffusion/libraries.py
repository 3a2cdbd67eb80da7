"""Control what third-party libraries import and log."""

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from typing import Any

BITSANDBYTES = "bitsandbytes"


@contextlib.contextmanager
def only_errors_logged() -> Iterator[None]:
    """Within the block diffusers, transformers and bitsandbytes log errors only; afterwards their levels are as before.

    For imports: transformers then logs that torchvision is missing, and bitsandbytes that a CPU kernel is. Levels that
    somebody has changed are left alone.
    """
    for name in ("diffusers", "transformers"):
        importlib.import_module(f"{name}.utils.logging")  # sets the library's level
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", BITSANDBYTES)]
    quietened = {logger: logger.level for logger in loggers if logger.getEffectiveLevel() == logging.WARNING}
    for logger in quietened:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in quietened.items():
            logger.setLevel(level)


def hide_bitsandbytes() -> None:
    """For programs: prevent imports of bitsandbytes until ``import_bitsandbytes`` is called.

    diffusers imports it wherever it is installed, which takes time and may look for CPU kernels on the network.
    """
    sys.modules.setdefault(BITSANDBYTES, None)  # type: ignore[arg-type]  # None makes an import fail


def bitsandbytes_installed() -> bool:
    """Whether bitsandbytes can be imported, hidden or not."""
    return PathFinder.find_spec(BITSANDBYTES) is not None


def import_bitsandbytes() -> Any:
    """bitsandbytes, hidden until now or not. Raises ImportError where it is not installed."""
    if BITSANDBYTES in sys.modules and sys.modules[BITSANDBYTES] is None:
        del sys.modules[BITSANDBYTES]
    with only_errors_logged():
        return importlib.import_module(BITSANDBYTES)


def hide_loading_bars() -> None:
    """For programs: the loading bars of the libraries below are not shown from now on."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
