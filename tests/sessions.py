"""A training session outside the loop."""

from conftest import tiny_pipe

from training.data.concepts import concept_numbers
from training.data.dataset import load_dataset
from training.runs.run_folder import Run
from training.session.devices import make_accelerator
from training.session.phase_timer import PhaseTimer
from training.session.processes import Processes
from training.session.setup import set_up


def make_session(config, folder, pipe=None):
    concepts = concept_numbers(config)
    dataset = load_dataset(config.photos, config.resolution, config.crop, config.boxes, config.mask, concepts)
    accelerator, timer = make_accelerator(config), PhaseTimer(True, [])
    return set_up(config, Run(folder / "run"), accelerator, pipe or tiny_pipe(), dataset, timer, Processes(accelerator))
