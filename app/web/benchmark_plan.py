"""The plan of a benchmark of saved adapters: their settings, on their photos but one, with several seeds."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.protocols import plan as plans
from app.protocols.plan import BASE, PICTURES, Plan
from app.web.context import AppContext
from app.web.status_bar import base_name
from app.web.train_config import absolute_base
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.errors import UserError
from hra_diffusion.names import first_free
from training.config import TrainConfig
from training.data.photo_files import find_photos
from training.runs.lookup import run_of

MAX_ADAPTERS = 6
SESSION_FIELDS = ("base", "dtype", "device", "prediction_type", "rescale_zero_snr")
"""Settings that are those of the page's base model."""
NOT_COMPARED = {
    *SESSION_FIELDS, "name", "photos", "boxes", "class_noun", "concepts", "seed", "sample_every", "validation",
    "validation_every", "early_stop", "report_to", "auto_resume",
}  # fmt: skip
"""Settings of a run that its cells do not take over: the plan decides them."""


def make_plan(context: AppContext, keys: Sequence[str], seeds: int) -> Plan:
    """Return the plan of a benchmark. Raises UserError if adapters can't be compared so, or a visitor may not.

    Args:
        keys: of the adapters.
        seeds: number of training seeds.
    """
    configs = _configs(context, keys)
    first = next(iter(configs.values()))
    session = context.session
    if others := [name for name, config in configs.items() if config.photos != first.photos]:
        raise UserError(f"{next(iter(configs))} and {others[0]} were trained on other photos: choose adapters of one")
    base = absolute_base(session.base)
    if others := [config.base for config in configs.values() if absolute_base(config.base) != base]:
        raise UserError(f"an adapter was trained on {base_name(others[0])}: choose this base model above")
    photos = find_photos(first.photos)
    plan = Plan(
        protocol="mine", name=f"benchmark-{secrets.token_hex(4)}", photos=tuple(photos), class_noun=first.class_noun,
        base={name: getattr(session, name) for name in SESSION_FIELDS} | {"base": base, "sample_every": 0},
        subjects=("mine",), variants={name: _settings(config, photos) for name, config in configs.items()},
        seeds=tuple(range(seeds)), prompts=None, pictures=PICTURES["mine"], checkpoints=0,
    )  # fmt: skip
    plan.load_subjects()
    plans.check(plan)
    return plan


def _configs(context: AppContext, keys: Sequence[str]) -> dict[str, TrainConfig]:
    """Return the settings of the runs that trained the adapters, each run once. Raises UserError if there are none."""
    if not keys:
        raise UserError("Choose the adapters above whose settings are to be compared.")
    configs, seen = dict[str, TrainConfig](), set[Path]()
    for path in map(context.adapter_path, keys):
        info, run = read_info(path), run_of(path)
        if not context.person.may_change(context.owner(path)):
            raise UserError(f"{info.name} belongs to somebody else: only its owner can train on its photos")
        if run is None:
            raise UserError(f"{info.name} was not trained here, so its settings are not known: leave it out")
        config = run.config
        if config.concepts or config.init_adapter:
            what = "has several subjects" if config.concepts else "started from another adapter"
            raise UserError(f"{info.name} {what}: a benchmark compares runs from scratch on one subject")
        if run.folder not in seen:
            configs[first_free(info.name, {*configs, BASE}.__contains__)] = config
        seen.add(run.folder)
    if len(configs) > MAX_ADAPTERS:
        raise UserError(f"these are {len(configs)} runs, and at most {MAX_ADAPTERS} can be compared at once")
    return configs


def _settings(config: TrainConfig, photos: Sequence[Path]) -> dict[str, Any]:
    """Return the settings of a run that a variant takes over, with the crops of the photos that are not held out."""
    boxes = {str(path): box for path, box in config.boxes.items() if path in photos[:-1]}
    return config.model_dump(mode="json", exclude=NOT_COMPARED) | {"boxes": boxes}
