"""A server from its options: for the command, and for each replica on a Ray cluster."""

import logging
import warnings
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from app.serving.engine import Engine
from app.serving.keys import KeyRing
from app.serving.pictures import PictureFolder
from app.serving.service import Service
from app.serving.store import AdapterStore
from hra_diffusion.files import make_folder
from hra_diffusion.libraries import hide_loading_bars
from hra_diffusion.models.loading import load_base
from hra_diffusion.models.prompts import PromptWarning
from hra_diffusion.models.sources import TOYBOX
from hra_diffusion.pipeline import components


class ServerOptions(BaseModel):
    """Options of a server, as those of ``hra-diffusion serve``."""

    model_config = ConfigDict(extra="forbid")

    adapters: Path
    pictures: Path
    keys: Path | None = None
    batch_size: int = Field(8, ge=1)
    max_queue: int = Field(256, ge=1)
    adapter_memory: float = Field(4, gt=0, description="In GiB.")
    base: str = TOYBOX
    base_revision: str | None = None
    base_variant: str | None = None
    device: str | None = None
    dtype: str = "float32"
    prediction_type: str | None = None
    rescale_zero_snr: bool | None = None


def make_service(options: ServerOptions) -> Service:
    """Load the base model and start the engine. Raises UserError."""
    ring, folder, pictures = KeyRing(options.keys), make_folder(options.adapters), PictureFolder(options.pictures)
    hide_loading_bars()
    _log_no_prompts()
    pipe = load_base(
        options.base, options.device, options.dtype, prediction_type=options.prediction_type,
        rescale_zero_snr=options.rescale_zero_snr, revision=options.base_revision, variant=options.base_variant,
    )  # fmt: skip
    store = AdapterStore(folder, components(pipe), int(options.adapter_memory * 2**30))
    return Service(Engine(pipe, options.batch_size, options.max_queue), store, ring, pictures)


def _log_no_prompts() -> None:
    """Ignore the warnings of long prompts, which quote them: this project's, and those that diffusers logs."""
    warnings.simplefilter("ignore", PromptWarning)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
