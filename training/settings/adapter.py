"""The adapter method and the layers that it adapts."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field


class AdapterSettings(BaseModel):
    """The adapter method and the layers that it adapts."""

    preset: Literal["quick", "balanced", "best"] = Field("balanced", description="How long to train.")
    method: str = Field("hra", description="Adapter method.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the adapter method.")
    init_adapter: Path | None = Field(
        None, description="Adapter to start from: a name or a file, of the same method, rank and layers."
    )
    targets: str = Field(
        "attention", description="Layers of the denoiser to adapt: a named set or a pattern of layer names."
    )
    exclude: str | None = Field(
        None, description="Layers that are not adapted though they are targets: a pattern of layer names."
    )
    ranks: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        max_length=1000,
        description="Ranks that differ from the method's option, by pattern of layer names. The first match counts.",
    )
    train_text_encoder: bool = Field(description="Also train an adapter for the text encoder.")
    text_encoder_lr_scale: float = Field(
        1.0, gt=0, le=10, description="Learning rate of the text encoder, relative to that of the denoiser."
    )
    train_trigger: bool = Field(
        False,
        description="Also train the embeddings of the trigger's tokens, from those of the class noun (pivotal tuning).",
    )
    trigger_lr_scale: float = Field(
        1.0, gt=0, le=100, description="Learning rate of the trigger's embeddings, relative to that of the denoiser."
    )

    @property
    def runs_text_encoder(self) -> bool:
        """Whether the text encoders run in each step, rather than once before training."""
        return self.train_text_encoder or self.train_trigger
