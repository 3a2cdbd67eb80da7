"""Serve the page."""

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
"""What in the outputs folder is nobody's to fetch."""
MAX_UPLOAD = "2gb"
"""A stranger's adapter for Stable Diffusion XL; a photo may have less (training.data.drafts)."""
WARMING = "warming"
"""The thread that loads the base behind the page."""


def prepare_surroundings(output: Path) -> None:
    """What Gradio reads from the environment when it is imported: no reports home, its files inside ours."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(output.resolve() / ".gradio")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    for name in ("GRADIO_SHARE", "GRADIO_SERVER_NAME", "GRADIO_ALLOWED_PATHS", "GRADIO_MCP_SERVER"):
        os.environ.pop(name, None)  # what is served, and where, is said on our command line only


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
    """Start the page; returns the launched blocks when ``block`` is off. The base is loaded behind the page."""
    gc.disable()  # until all is imported: looking for garbage there takes a seventh of the wait and finds none
    prepare_surroundings(output)
    from app.inference_session import InferenceSession
    from app.web.blocks import build
    from app.web.context import AppContext
    from hra_diffusion import trash
    from hra_diffusion.files import make_folder

    make_folder(output)
    trash.empty(output)
    session = InferenceSession(bases[0], device, dtype, clip, prediction_type, rescale_zero_snr)
    context = AppContext(output, session, tuple(bases))
    _ = context.salt  # before visitors come: two at once would each make one
    threading.Thread(target=_warm, args=(context.session,), name=WARMING, daemon=True).start()
    page = build(context)
    page.queue(default_concurrency_limit=8, max_size=64)
    _listen(page, output, host, port, auth, share)
    print(f"hra-diffusion is at {page.local_url}", flush=True)
    context.queue.start()  # runs that waited when the machine went down
    if block:
        page.block_thread()
    return page


def _listen(page: Any, output: Path, host: str, port: int | None, auth: Path | None, share: bool) -> None:
    """Answer at this address. Raises UserError if that can't be."""
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
            f"can't listen on {host}, port {port or 'any from 7860 on'}: it is taken, or no address of this machine; "
            "give another --port or --host"
        ) from error


def _warm(session: Any) -> None:
    """Load the base behind the page. What is wrong with it is said when somebody draws."""
    from app.inference_session import import_libraries
    from hra_diffusion.errors import UserError
    from hra_diffusion.libraries import hide_loading_bars
    from hra_diffusion.models.prompts import PromptWarning

    warnings.simplefilter("ignore", PromptWarning)  # the page shows them with the pictures
    try:
        import_libraries()
        hide_loading_bars()
        with contextlib.suppress(UserError):
            _ = session.pipe
    finally:
        gc.freeze()  # what is imported stays: no later search goes through it
        gc.enable()
