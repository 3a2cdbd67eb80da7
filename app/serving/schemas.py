"""The bodies of requests and answers, in OpenAI's form, with this project's extensions."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.serving.errors import ApiError
from app.serving.keys import BASE
from hra_diffusion.generation.requests import Settings
from hra_diffusion.generation.schedulers import DEFAULT

MAX_PICTURES = 10
MAX_PROMPT = 4000
Scheduler = Literal["dpm++", "dpm++-karras", "ddim", "euler", "euler-a", "unipc", "ddpm"]


class ImageRequest(BaseModel):
    """A request for pictures. ``seed`` and what follows it are extensions: ``extra_body`` of OpenAI's client."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(max_length=MAX_PROMPT, description="{subject} stands for the adapter's trigger and class noun.")
    model: str = Field(BASE, max_length=100, description="Name of an adapter, or base.")
    n: int = Field(1, ge=1, le=MAX_PICTURES)
    size: str = Field("auto", max_length=20, description='"WIDTHxHEIGHT" in pixels, or auto.')
    response_format: Literal["url", "b64_json"] = "b64_json"
    stream: bool = Field(False, description="Send previews and the picture as server-sent events; for one picture.")
    partial_images: int = Field(0, ge=0, le=3, description="Number of previews of a stream.")
    output_format: Literal["png"] = "png"
    quality: Literal["auto"] = "auto"
    user: str = Field("", max_length=200, description="Ignored.")
    seed: int | None = Field(None, ge=0, lt=2**63 - MAX_PICTURES, description="Picture k has seed + k. None: random.")
    strength: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    negative_prompt: str = Field("", max_length=MAX_PROMPT)
    steps: Annotated[int | None, Field(ge=1, le=200)] = None
    guidance_scale: Annotated[float | None, Field(ge=0, le=50, allow_inf_nan=False)] = None
    scheduler: Scheduler = DEFAULT

    @property
    def settings(self) -> Settings:
        """The settings of the pictures. Raises ApiError (400) for a size in another form."""
        if self.size == "auto":
            return Settings(self.steps, self.guidance_scale, self.scheduler)
        if not (size := re.fullmatch(r"(\d{1,5})x(\d{1,5})", self.size)):
            raise ApiError(400, "invalid_value", 'size must be "WIDTHxHEIGHT", such as "512x512", or "auto"')
        return Settings(self.steps, self.guidance_scale, self.scheduler, int(size[1]), int(size[2]))


class ImageData(BaseModel):
    """A picture: as base64, or the address where it stays for an hour."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class ImageResponse(BaseModel):
    """The pictures of a request, in order."""

    created: int
    data: list[ImageData]
    output_format: Literal["png"] = "png"
    size: str


class Model(BaseModel):
    """An adapter, or the base model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "hra-diffusion"
    subject: str = ""


class ModelList(BaseModel):
    """The models that a key may use."""

    object: Literal["list"] = "list"
    data: list[Model]
