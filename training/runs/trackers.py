"""Experiment trackers: a listener that sends a run's figures and samples to the trackers of Accelerate.

Source: ``accelerate.tracking`` of accelerate 1.15, whose classes know TensorBoard, Weights & Biases and others.
"""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate import tracking

from hra_diffusion.errors import first_line
from hra_diffusion.generation.png import read_image
from hra_diffusion.models.sources import base_name
from training.config import TrainConfig
from training.errors import TrainingError
from training.runs.events import Event, Failed, Finished, Sample, Scored, Step, Stopped, Validated

LOGS = "logs"
"""Subfolder of a run's folder for trackers that write files."""
PRIVATE_FIELDS = {"photos", "boxes", "init_adapter"}
"""Fields of TrainConfig that trackers don't get: paths of this machine."""
PROJECT = "hra-diffusion"
RUN_NAMES = {"wandb": "name", "trackio": "name", "swanlab": "experiment_name", "mlflow": "run_name"}
"""Argument for the name of a run, by trackers that group runs into a project."""
IMAGE_OPTIONS = {"tensorboard": {"dataformats": "NHWC"}}
"""Arguments of ``log_images`` by tracker."""


def require_trackers(names: Sequence[str]) -> None:
    """Raise TrainingError if the package of a tracker is missing."""
    available = {str(name) for name in tracking.get_available_trackers()}
    for name in names:
        if name not in available:
            package = "'hra-diffusion[tensorboard]'" if name == "tensorboard" else name.replace("_", "-")
            raise TrainingError(f"--report-to {name} needs a package that is not installed: pip install {package}")


def start_trackers(config: TrainConfig, folder: Path) -> list[tracking.GeneralTracker]:
    """Start the trackers of a run and store its settings there. Those that write files do so in ``folder``/logs.

    Raises TrainingError if one can't be started, as without a login.
    """
    trackers = []
    for name in config.report_to:
        kind: Any = tracking.LOGGER_TYPE_TO_CLASS[name]
        place = [str(folder / LOGS)] if kind.requires_logging_directory else []
        project, options = config.name, {}
        if name in RUN_NAMES:
            project, options = PROJECT, {RUN_NAMES[name]: config.name}
        if name == "tensorboard":  # or a run that resumes within a second of its start overwrites its first file
            options = {"filename_suffix": f".{secrets.token_hex(4)}"}
        try:
            tracker = kind(project, *place, **options)
            tracker.start()
            tracker.store_init_configuration(_public(config))
        except Exception as error:  # the libraries involved raise errors of many types
            raise TrainingError(f"the tracker {name} can't be started: {first_line(error)}") from error
        trackers.append(tracker)
    return trackers


class TrackerListener:
    """Send losses, learning rates, gradient norms, validation losses, scores and samples to trackers.

    Only the main process may listen. The trackers are finished when the run ends, also if it stops or fails.
    """

    def __init__(self, trackers: Sequence[tracking.GeneralTracker]):
        self.trackers = trackers

    def __call__(self, event: Event) -> None:
        match event:
            case Step():
                self._log(event.step, loss=event.loss, learning_rate=event.learning_rate, gradient_norm=event.norm)
            case Validated():
                self._log(event.step, validation_loss=event.loss)
            case Scored():
                self._log(event.step, similarity_to_photos=event.subject, similarity_to_prompts=event.prompt)
            case Sample():
                self._log_images(event)
            case Stopped() | Failed() | Finished():
                for tracker in self.trackers:
                    tracker.finish()

    def _log(self, step: int, **values: float) -> None:
        for tracker in self.trackers:
            tracker.log(values, step=step)

    def _log_images(self, event: Sample) -> None:
        images = [np.asarray(image) for path in event.pictures if (image := read_image(Path(path)))]
        for tracker in self.trackers:
            if images and hasattr(tracker, "log_images"):
                options: Mapping[str, Any] = IMAGE_OPTIONS.get(getattr(tracker, "name", ""), {})
                cast(Any, tracker).log_images({"samples": np.stack(images)}, step=event.step, **options)


def _public(config: TrainConfig) -> dict[str, Any]:
    """Return the settings without paths of this machine, as numbers and texts, which every tracker takes."""
    values = config.model_dump(mode="json", exclude=PRIVATE_FIELDS)
    values |= {"base": base_name(config.base), "validation": Path(config.validation).name}
    plain = (bool, int, float, str)
    return {name: value if isinstance(value, plain) else str(value) for name, value in values.items()}
