"""The web server of the page."""

import contextlib
import gc
import os
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})
PRIVATE = ("photos", ".queue", ".cache", ".bin", ".salt")
"""Entries of the outputs folder that are never served."""
MAX_UPLOAD = "2gb"
"""Enough for an adapter for Stable Diffusion XL; photos have their own limit (training.data.drafts)."""
WARMING = "warming"
"""Name of the thread that loads the base model in the background."""


def prepare_environment(output: Path) -> None:
    """Set the environment that Gradio reads on import: no telemetry, its files inside the outputs folder."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(output.resolve() / ".gradio")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    for name in ("GRADIO_SHARE", "GRADIO_SERVER_NAME", "GRADIO_ALLOWED_PATHS", "GRADIO_MCP_SERVER"):
        os.environ.pop(name, None)  # only our command line decides what is served, and where


def serve(
    output: Path,
    bases: Sequence[str],
    device: str | None,
    dtype: str,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: Path | None = None,
    share: bool = False,
    block: bool = True,
    clip: str | None = None,
    prediction_type: str | None = None,
    rescale_zero_snr: bool | None = None,
) -> Any:
    """Start the page and load the base model in the background. Returns the blocks if ``block`` is False."""
    gc.disable()  # until all imports are done: collections take a seventh of the start and free nothing
    prepare_environment(output)
    from app.inference_session import InferenceSession
    from app.web.blocks import build
    from app.web.context import AppContext
    from hra_diffusion import trash
    from hra_diffusion.files import make_folder, sweep

    make_folder(output)
    trash.delete_expired(output)
    sweep(output)
    session = InferenceSession(bases[0], device, dtype, clip, prediction_type, rescale_zero_snr)
    context = AppContext(output, session, list(bases), local=host in LOOPBACK and not auth and not share)
    _ = context.salt  # before the first visitors: two at once would each create one
    threading.Thread(target=_warm, args=(context.session,), name=WARMING, daemon=True).start()
    page = build(context)
    page.queue(default_concurrency_limit=8, max_size=64)
    _listen(page, output, host, port, auth, share)
    print(f"hra-diffusion is at {page.local_url}", flush=True)
    context.queue.start()  # runs that were waiting when the machine went down
    if block:
        page.block_thread()
    return page


def _listen(page: Any, output: Path, host: str, port: int | None, auth: Path | None, share: bool) -> None:
    """Listen at this address. Raises UserError if that is not possible."""
    from starlette.middleware import Middleware

    from app.web import logins, theme
    from app.web.guard import Guard
    from hra_diffusion.errors import UserError

    hosts = None if share or host not in LOOPBACK else LOOPBACK
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            auth=(lambda name, password: logins.check(auth, name, password)) if auth else None,
            allowed_paths=[str(output.resolve())],
            blocked_paths=[str(output.resolve() / name) for name in PRIVATE],
            max_file_size=MAX_UPLOAD,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            inbrowser=False,
            theme=theme.theme(),
            css=theme.css(),
            head=theme.head(),
            app_kwargs={"middleware": [Middleware(Guard, hosts=hosts)], "docs_url": None, "redoc_url": None},
        )
    except OSError as error:
        raise UserError(
            f"can't listen on {host}, port {port or 'any from 7860 on'}: it is in use, or not an address of "
            "this machine; choose another --port or --host"
        ) from error


def _warm(session: Any) -> None:
    """Load the base model. Errors are shown when an image is requested."""
    from app.inference_session import import_libraries
    from hra_diffusion.errors import UserError
    from hra_diffusion.libraries import hide_loading_bars
    from hra_diffusion.models.prompts import PromptWarning

    warnings.simplefilter("ignore", PromptWarning)  # the page shows them with the images
    try:
        import_libraries()
        hide_loading_bars()
        with contextlib.suppress(UserError):
            _ = session.pipe
    finally:
        gc.freeze()  # imported modules stay: later collections skip them
        gc.enable()
