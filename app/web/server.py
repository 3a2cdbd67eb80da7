"""The web server of the page."""

import contextlib
import gc
import os
import threading
import warnings
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from app.web.limits import DEFAULTS, Limits

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})
MAX_THREADS = 100
"""Threads of the server: waiting requests for images take up to 40 (``drawing_queue.MAX_TURNS``)."""
MAX_UPLOAD = "2gb"
"""Enough for an adapter for Stable Diffusion XL; photos have their own limit (training.data.drafts)."""
WARMING = "warming"
"""Name of the thread that loads the base model in the background."""


def prepare_environment(output: Path) -> None:
    """Set the environment that Gradio reads on import: no telemetry, its files inside the outputs folder."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(10**9)  # else each event makes a table of the last 10,000
    os.environ["GRADIO_TEMP_DIR"] = str(output.resolve() / ".gradio")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    for name in ("GRADIO_SHARE", "GRADIO_SERVER_NAME", "GRADIO_ALLOWED_PATHS", "GRADIO_MCP_SERVER"):
        os.environ.pop(name, None)  # only our command line decides what is served, and where


def serve(
    output: Path,
    bases: Sequence[str],
    device: str | None,
    dtype: str | None,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: Path | None = None,
    share: bool = False,
    block: bool = True,
    clip: str | None = None,
    prediction_type: str | None = None,
    rescale_zero_snr: bool | None = None,
    limits: Limits = DEFAULTS,
    keep_visitors_days: float = 30.0,
    cluster: dict[str, Any] | None = None,
) -> Any:
    """Start the page and load the base model in the background. Returns the blocks if ``block`` is False.

    ``dtype``: precision of the base models; None for the one that the device is made for. ``limits``: of
    each person, unless the page is local. ``keep_visitors_days``, ``cluster``: see ``AppContext``.
    """
    gc.disable()  # until all imports are done: collections take a seventh of the start and free nothing
    prepare_environment(output)
    from app.inference_session import InferenceSession
    from app.web import keeper
    from app.web.blocks import build
    from app.web.context import AppContext
    from hra_diffusion.files import make_folder, sweep
    from hra_diffusion.models import devices
    from training.runs.owners import LOCAL, Person

    make_folder(output)
    sweep(output)
    dtype = dtype or devices.preferred_dtype(devices.device_for(device))
    session = InferenceSession(bases[0], device, dtype, clip, prediction_type, rescale_zero_snr, output)
    local = host in LOOPBACK and not auth and not share
    context = AppContext(
        output, session, list(bases), local=local, auth=auth, limits=limits,
        keep_visitors_days=keep_visitors_days, cluster=cluster or {}, person=LOCAL if local else Person(""),
    )  # fmt: skip
    _ = context.salt  # before the first visitors: two at once would each create one
    threading.Thread(target=_warm, args=(context.session,), name=WARMING, daemon=True).start()
    page = build(context)
    page.queue(default_concurrency_limit=8, max_size=64)
    page._queue.sleep_when_free = 0.05  # as Gradio has it on Windows; elsewhere it wakes 1000 times a second
    _listen(page, context, host, port, auth, share)
    print(f"hra-diffusion is at {page.local_url}", flush=True)
    keeper.start(context, page)
    if block:
        page.block_thread()
    return page


def _listen(page: Any, context: Any, host: str, port: int | None, auth: Path | None, share: bool) -> None:
    """Listen at this address. Raises UserError if that is not possible."""
    from app.web import logins, theme
    from app.web.guard import Guard
    from hra_diffusion.errors import UserError

    hosts = None if auth or host not in LOOPBACK else LOOPBACK  # a proxy gives its own name

    @contextlib.asynccontextmanager
    async def guarded(app: Any) -> AsyncIterator[None]:
        app.middleware_stack = Guard(app.middleware_stack, hosts, context)  # also in front of Gradio's own middleware
        yield

    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            auth=logins.LoginCheck(auth).check if auth else None,
            allowed_paths=[str(context.output.resolve())],  # the guard decides about each file
            max_threads=MAX_THREADS,
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
            app_kwargs={"lifespan": guarded, "openapi_url": None},
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
