"""Experiment trackers: a listener that sends a run's figures and samples to the trackers of Accelerate.

Source: ``accelerate.tracking`` of accelerate 1.15, whose classes know TensorBoard, Weights & Biases and others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate import tracking

from hra_diffusion.generation.png import read_image
from training.config import TrainConfig
from training.errors import TrainingError
from training.runs.events import Event, Failed, Finished, Sample, Scored, Step, Stopped, Validated

LOGS = "logs"
"""Subfolder of a run's folder for trackers that write files."""
PRIVATE_FIELDS = {"photos", "boxes", "init_adapter"}
"""Fields of TrainConfig that trackers don't get: paths of this machine."""
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
    """Start the trackers of a run and store its settings there. Those that write files do so in ``folder``/logs."""
    trackers = []
    for name in config.report_to:
        kind: Any = tracking.LOGGER_TYPE_TO_CLASS[name]
        place = [str(folder / LOGS)] if kind.requires_logging_directory else []
        tracker = kind(config.name, *place)
        tracker.start()
        tracker.store_init_configuration(_flat(config.model_dump(mode="json", exclude=PRIVATE_FIELDS)))
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


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as numbers and texts, which every tracker takes."""
    plain = (bool, int, float, str)
    return {name: value if isinstance(value, plain) else str(value) for name, value in values.items()}
