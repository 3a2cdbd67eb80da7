"""Where a run trains: here, or on a Ray cluster."""

import importlib.util

from pydantic import BaseModel, Field, model_validator

from hra_diffusion.errors import UserError

LOCAL = "local"


def is_cluster(device: str) -> bool:
    """Whether a device that a run of the queue waits for is a cluster: "ray" or "ray://host:10001"."""
    return device.startswith("ray")


def require_ray(jobs: str) -> None:
    """Raise UserError if runs are to train on a cluster and Ray is not installed."""
    if jobs != LOCAL and importlib.util.find_spec("ray") is None:
        raise UserError(f"--jobs {jobs} needs Ray, which is not installed: pip install 'hra-diffusion[ray]'")


class ClusterSettings(BaseModel):
    """Where a run trains: here, or on a Ray cluster."""

    jobs: str = Field(
        LOCAL,
        pattern=r"^(local|ray|ray://[\w.-]+:\d{1,5})$",
        max_length=300,
        description="Where the run trains: local, or on a Ray cluster: ray (the one at RAY_ADDRESS, or of this "
        "machine) or ray://HOST:PORT.",
    )
    storage: str | None = Field(
        None,
        pattern=r"^[a-z][a-z0-9+.-]*://\S+$",
        description="Folder that all machines of the cluster reach, as a URL: file:///mnt/runs, s3://bucket/runs or "
        "gs://bucket/runs. By default a folder of the output folder, for a cluster of one machine.",
    )
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="On a cluster, GPUs of one machine that train the run together, each with the whole batch size.",
    )

    @model_validator(mode="after")
    def _check_processes(self) -> "ClusterSettings":
        if self.processes > 1 and self.jobs == LOCAL:
            raise ValueError("several processes need --jobs ray; on this machine use accelerate launch (see Train)")
        return self

    @property
    def cluster(self) -> str:
        """The cluster that trains the run, or "" for this machine."""
        return "" if self.jobs == LOCAL else self.jobs
