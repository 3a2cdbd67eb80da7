"""hra-diffusion train: train an adapter on photos. The flags come from TrainConfig and the methods' options."""

import argparse
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from app.commands.common import OUTPUTS, adapter_folders, add_output_mode
from hra_diffusion.adapters import registry
from hra_diffusion.files import path_of
from hra_diffusion.libraries import hide_loading_bars
from hra_diffusion.models.sources import TOYBOX
from training import config as configs
from training.config import ConfigError, TrainConfig
from training.data.photo_files import read_captions
from training.runs import lookup
from training.runs.event_text import PHASES
from training.runs.events import Event, Listener, Notice, Plan
from training.runs.listeners import ProgressBar, print_json
from training.runs.run_folder import Run, RunError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML; flags override them")
    parser.add_argument("--output", type=Path, default=OUTPUTS, metavar="DIR", help="folder for runs")
    parser.add_argument("--resume", action="store_true", help="continue exactly from the last checkpoint; photos "
                        "that have moved are found by their content, or in --photos")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the predicted memory and time of the run "
                        "and its captions, without training")  # fmt: skip
    add_output_mode(parser)
    for topic, settings in configs.TOPICS.items():
        group = parser.add_argument_group(f"{topic} (defaults depend on --preset, --base and --method)")
        for name, field in settings.model_fields.items():
            if name == "method":
                group.add_argument(
                    "--method", choices=registry.method_names(), default=argparse.SUPPRESS, help=field.description
                )
            elif name == "concepts":
                group.add_argument("--concepts", metavar="FILE", default=argparse.SUPPRESS, help=field.description)
            elif name not in ("options", "boxes", "ranks"):  # mappings, given by YAML only
                _add_flag(group, name, field, field.description or "")
    for old, new in configs.RENAMED.items():
        parser.add_argument(
            _flag(old), dest=new, action=_RenamedFlag, default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    options = parser.add_argument_group("method options")
    for name, (field, methods) in registry.options().items():
        _add_flag(options, name, field, f"{field.description} [{', '.join(methods)}]")


def run(arguments: argparse.Namespace) -> None:
    listeners = (
        [print_json] if arguments.json else [] if arguments.quiet else [ProgressBar(getattr(arguments, "name", "run"))]
    )
    config = read_config(arguments)
    hide_loading_bars()
    if arguments.dry_run:
        dry_run(config, arguments.output, [*listeners, *([] if arguments.json else [print_phases])])
    elif config.cluster:
        train_on_cluster(config, arguments.output, listeners, arguments.resume)
    else:
        from training.loop import train  # takes seconds to import

        Run(arguments.output / config.name).take_request("stop")  # of an earlier process
        train(config, arguments.output, listeners, arguments.resume, plan=True)


def train_on_cluster(config: TrainConfig, output: Path, listeners: Sequence[Listener], resume: bool) -> None:
    """Queue a run for its cluster and follow it to its end. Ctrl-C stops it; its process saves a checkpoint."""
    from training.runs.follow import wait_for
    from training.runs.queue import Queue

    queue, run = Queue(output), Run(output / config.name)
    if resume and run.finished and not run.goes_on(config):
        return
    if resume and run.folder.exists():
        if queue.job(config.name).status not in ("waiting", "running"):
            queue.continue_with(config)
    else:
        queue.add(config)
    try:
        job = wait_for(queue, config.name, listeners)
    except KeyboardInterrupt:
        queue.end(config.name)
        raise
    if job.status == "stopped":
        raise KeyboardInterrupt
    if job.status != "finished":
        raise RunError(f"{config.name} {job.status}: {job.reason}; see process.log in {job.run.folder}")


def dry_run(config: TrainConfig, output: Path, listeners: Sequence[Listener]) -> None:
    """Emit the captions of a run, advice on its photos and its predicted memory and time, without training."""
    from training.data import moved_photos
    from training.data.captions import final_captions
    from training.data.concepts import concept_numbers
    from training.data.dataset import load_dataset
    from training.data.photo import MIN_SIDE
    from training.data.validation_photo import held_out_photo
    from training.planning import plan_run
    from training.runs.trackers import require_trackers
    from training.session.devices import make_accelerator
    from training.session.optimizer import check_optimizer

    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)

    device = make_accelerator(config).device
    require_trackers(config.report_to)
    check_optimizer(config, device)
    run = Run(output / config.name)
    if run.checkpoints():
        config = moved_photos.with_current_paths(config, moved_photos.find(run, config, emit), run)
    concepts = concept_numbers(config)
    # small: no photo is enlarged
    dataset = load_dataset(config.photos, MIN_SIDE, config.crop, config.boxes, config.mask, concepts)
    held_out_photo(dataset.photos, config.validation, config.seed)
    captions = final_captions(config, read_captions(config.photos), concepts)
    emit(replace(captions, coverage=dataset.coverage))
    for warning in dataset.warnings:
        emit(Notice(warning.message))
    plan_run(config, output, device.type, len(dataset.photos), emit)


def print_phases(event: Event) -> None:
    """Print the predicted memory of each phase on standard output, as a listener."""
    if isinstance(event, Plan):
        for phase, memory in event.phases.items():
            print(f"{memory / 2**30:6.1f} GB  {PHASES.get(phase, phase)}")


def read_config(arguments: argparse.Namespace) -> TrainConfig:
    """Return the configuration from the flags and the YAML file; flags take precedence.

    With ``--resume``, the configuration of the run fills in the rest. Raises ConfigError if a required setting is
    missing.
    """
    given = {name: value for name, value in vars(arguments).items() if name in TrainConfig.model_fields}
    known = registry.options()
    options = {name: value for name, value in vars(arguments).items() if name in known}
    from_file = configs.read_values(arguments.config) if arguments.config else {}
    name = given.get("name", from_file.get("name"))
    run = lookup.find(arguments.output, name) if arguments.resume and name else None
    if arguments.resume and not run and set(given) - {"device"} == {"name"} and not (options or arguments.config):
        raise ConfigError(f"there is no run {given['name']!r} in {arguments.output} to resume")
    concepts = _concepts(given, from_file)
    values = (_values_of(run.config, bool(concepts)) if run else {}) | from_file
    if init := given.get("init_adapter", from_file.get("init_adapter")):
        given["init_adapter"], suitable = _init_adapter(str(init), arguments.output)
        values = ({} if run or given.get("method") not in (None, suitable["method"]) else suitable) | values
    values |= given | ({"options": values.get("options", {}) | options} if options else {})
    values |= {"concepts": concepts} if concepts else {}
    required = ("name",) if values.get("concepts") else ("photos", "class_noun", "name")
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"missing settings: {', '.join(map(_flag, missing))}")
    if "photos" in values:
        values["photos"] = _absolute(values["photos"])
    base = values.get("base", TOYBOX)
    if base != TOYBOX and Path(base).exists():
        values["base"] = str(Path(base).resolve())
    return configs.parse(values)


def _values_of(config: TrainConfig, other_concepts: bool) -> dict[str, Any]:
    """Return the values of a run without those that follow from its concepts or, in their place, from other ones."""
    derived = {"photos", "class_noun", "trigger"} if config.concepts or other_concepts else None
    return config.model_dump(mode="json", exclude=derived)


def _concepts(given: dict[str, Any], from_file: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the concepts of the flag, else of the YAML file, with absolute paths; [] if neither has any."""
    from training.data.concepts import absolute_concepts, read_concepts

    if "concepts" in given:
        return read_concepts(path_of(given["concepts"]))
    return absolute_concepts(from_file["concepts"], Path.cwd()) if from_file.get("concepts") else []


def _init_adapter(name_or_file: str, output: Path) -> tuple[str, dict[str, Any]]:
    """Return the file of the adapter to start from, and the settings that suit it."""
    from hra_diffusion.adapters.adapter_file import read_info  # takes seconds to import
    from hra_diffusion.library import find_adapter
    from training.init_adapter import settings_of

    path = find_adapter(name_or_file, adapter_folders(output)).resolve()
    return str(path), settings_of(read_info(path))


def _absolute(photos: Sequence[str | Path]) -> tuple[Path, ...]:
    return tuple(path_of(photo).resolve() for photo in photos)


class _RenamedFlag(argparse.Action):
    """Store the value of a flag of earlier versions under its current name, with a note on standard error."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        print(f"{option_string} is now {_flag(self.dest)}", file=sys.stderr)
        setattr(namespace, self.dest, values)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_flag(group: Any, name: str, field: FieldInfo, text: str) -> None:
    flag, kind = _flag(name), field.annotation
    text = text.replace("%", "%%")
    if kind in (bool, bool | None):
        group.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        return
    multiple = typing.get_origin(kind) is tuple
    group.add_argument(
        flag,
        dest=name,
        default=argparse.SUPPRESS,
        help=text,
        metavar=_metavar(kind),
        **({"nargs": "+", "action": "extend"} if multiple else {}),
    )


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(typing.get_args(kind)) + "}"
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return _metavar(typing.get_args(kind)[0])
    if typing.get_origin(kind) is tuple:
        return _metavar(typing.get_args(kind)[0])
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")
