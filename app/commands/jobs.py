"""Options of the commands that train: on this machine or on a cluster."""

import argparse
from typing import Any

from pydantic import ValidationError

from hra_diffusion.adapters.registry import explain
from training.config import ConfigError
from training.settings.cluster import LOCAL, ClusterSettings, require_ray


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add --jobs and --storage."""
    group = parser.add_argument_group("cluster")
    for name, default in (("jobs", LOCAL), ("storage", None)):
        text = ClusterSettings.model_fields[name].description
        group.add_argument(f"--{name}", default=default, metavar="TEXT", help=text)


def parse_jobs(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of runs that train on a cluster, {} for this machine.

    The cluster chooses their device, unless --device is given. Raises UserError for invalid options, or without Ray.
    """
    if arguments.jobs == LOCAL:
        return {}
    try:
        settings = ClusterSettings(jobs=arguments.jobs, storage=arguments.storage, processes=1)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None
    require_ray(settings.jobs)
    return {**settings.model_dump(exclude={"processes"}), "device": arguments.device}
