"""Turn the Train tab's form into training configurations, and queue their runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from app.web import form, quotas
from app.web.context import AppContext
from app.web.status_bar import base_name
from app.web.values import Flag, Line, Method, Methods, Mode, Preset, Text, row
from hra_diffusion import yaml_text
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.errors import UserError
from hra_diffusion.files import remove
from hra_diffusion.models.sources import TOYBOX
from hra_diffusion.names import validated_name
from training import config as configs
from training.config import ConfigError, TrainConfig
from training.data.drafts import Draft, free_photo_folder
from training.init_adapter import settings_of
from training.rank_matching import count_parameters, layer_shapes, matched_rank
from training.runs.owners import Owner

NOT_FROM_YAML = (
    "photos", "boxes", "concepts", "base", "base_revision", "base_variant", "prediction_type", "rescale_zero_snr",
    "jobs", "storage", "processes",
)  # fmt: skip
"""Settings that YAML typed on the page cannot change."""
DECISIVE = ("optimizer", "preservation")
"""Settings on which the defaults of others depend, besides base model, preset, method, rank and initial adapter."""
DECISIVE_FIELDS = ("rank", "init_adapter", *DECISIVE)
"""Their fields among the advanced settings."""
PLACEHOLDERS = {"name": "preview", "class_noun": "thing"}
"""Stand in for required settings that do not change the cost of a run."""


class FormValues(NamedTuple):
    """Values of the form, in the order of its inputs; drafts store them by these names.

    ``text``: the settings as YAML, used when ``mode`` is "YAML". ``advanced``: one value per field of form.Entry.
    """

    noun: Line
    name: Line
    trigger: Line
    preset: Preset
    method: Method
    several: Methods
    mode: Mode
    text: Text
    add_trigger: Flag
    advanced: tuple[Text, ...]

    @classmethod
    def of(cls, values: Sequence[Any]) -> "FormValues":
        """The values of an event, which come in a row. Raises UserError for values of other types."""
        return row(cls, values)

    def without_advanced(self) -> "FormValues":
        """The same with the advanced settings left empty."""
        return self._replace(mode="Form", text="", advanced=("",) * len(self.advanced))

    def decisive(self, entries: Sequence[form.Entry]) -> "FormValues":
        """The same with only those advanced settings on which the defaults of others depend."""
        kept = (
            value if entry.name in DECISIVE_FIELDS else "" for entry, value in zip(entries, self.advanced, strict=True)
        )
        return self._replace(mode="Form", text="", advanced=tuple(kept))


def given_settings(context: AppContext, entries: Sequence[form.Entry], values: FormValues) -> dict[str, Any]:
    """Return the settings of the form (or the YAML in its place) and of the base model in use, without the photos.

    Raises ConfigError for malformed YAML.
    """
    session = context.session
    basics = {
        "class_noun": values.noun,
        "name": (values.name or "").strip(),
        "trigger": values.trigger,
        "preset": values.preset,
        "method": values.method,
        "add_trigger": values.add_trigger,
        "base": absolute_base(session.base),
        "dtype": session.dtype,
        "device": session.device,
        "prediction_type": session.prediction_type,
        "rescale_zero_snr": session.rescale_zero_snr,
    }
    if values.mode == "YAML":
        typed = _parse_yaml(values.text)
        if typed.get("concepts"):
            raise UserError(
                "the page trains one subject, and the YAML has several (concepts): leave them out, or train them with "
                "hra-diffusion train --config FILE"
            )
        given = {key: value for key, value in typed.items() if key not in NOT_FROM_YAML}
    else:
        given = form.collect(entries, values.advanced, values.method)
    if given.get("report_to") and not context.may_configure:
        raise UserError("trackers use the account of this machine: only an admin can choose them")
    if name := given.get("init_adapter"):
        path = _init_adapter(context, str(name))
        if (info := read_info(path)).method != given.get("method", values.method):
            raise UserError(
                f"the adapter to start from is {registry.get_method(info.method).title}: choose that method"
            )
        given = settings_of(info) | given | {"init_adapter": str(path)}
    return basics | given


def _init_adapter(context: AppContext, name: str) -> Path:
    """Return the file of an adapter by its path, or its name in the lists of the page. Raises UserError for others."""
    for label, key in context.adapter_choices():
        if name in (label, str((context.output / key).resolve())):
            return context.adapter_path(key)
    raise UserError(f"there is no adapter {name!r} to start from; use its name as in the Generate tab")


def _parse_yaml(text: str) -> dict[str, Any]:
    try:
        return configs.parse_yaml(text or "")
    except ConfigError as error:
        raise ConfigError(f"the YAML can't be read: {error}") from None


def to_yaml(config: TrainConfig) -> str:
    """Return a configuration as YAML, without the settings that have their own place on the page."""
    hidden: set[str] = {*form.NOT_IN_FORM} - {"method", "options", "preset"}
    return yaml_text.write(config.model_dump(mode="json", exclude=hidden))


def absolute_base(base: str) -> str:
    """Return the base model with an absolute path if it is a folder or file: runs have another working folder."""
    return str(Path(base).resolve()) if base != TOYBOX and Path(base).exists() else base


def preview_config(
    context: AppContext, entries: Sequence[form.Entry], values: FormValues, base: str | None = None
) -> TrainConfig:
    """Return the configuration of a possibly incomplete form, on ``base`` or the base model in use.

    Placeholders fill in what is missing; they do not change the cost. Raises ConfigError for invalid settings.
    """
    settings = given_settings(context, entries, values) | ({"base": absolute_base(base)} if base else {})
    return _parse(settings)


def _parse(settings: dict[str, Any]) -> TrainConfig:
    filled = {key: value for key, value in settings.items() if value not in ("", None)}
    return configs.parse({**PLACEHOLDERS, **filled, "photos": ["."], "boxes": {}})


def changed_settings(
    context: AppContext, entries: Sequence[form.Entry], values: FormValues, config: TrainConfig
) -> dict[str, Any]:
    """Return the settings in which a configuration differs from its defaults."""
    defaults = defaults_beside(context, entries, values, config)
    changed = {name: value for name, value in config if value != getattr(defaults, name)}
    return changed | {"options": {k: v for k, v in config.options.items() if v != defaults.options.get(k)}}


def defaults_beside(
    context: AppContext, entries: Sequence[form.Entry], values: FormValues, config: TrainConfig
) -> TrainConfig:
    """Return the defaults of all settings beside the decisive ones of a configuration.

    The options and ``DECISIVE`` settings themselves are the defaults of the preset and method, or those of the initial
    adapter.
    """
    values = values._replace(preset=config.preset, method=config.method).without_advanced()
    bare = given_settings(context, entries, values) | {"base": config.base}
    if config.init_adapter:
        bare |= settings_of(read_info(Path(config.init_adapter)))
    usual, chosen = _parse(bare), config.model_dump(include={"options", *DECISIVE})
    return _parse(bare | chosen).model_copy(update={name: getattr(usual, name) for name in chosen})


def plan(context: AppContext, entries: Sequence[form.Entry], values: FormValues) -> list[TrainConfig]:
    """Return the configurations of the runs to queue: one, or one per method at matched parameter budgets.

    Methods other than the form's own take over the settings changed by hand, but not its defaults or options.
    """
    first = preview_config(context, entries, values)
    if not values.several:
        return [first]
    settings = given_settings(context, entries, values)
    # YAML contains every setting, the form only those that were filled in
    by_hand = (
        {*form.NOT_IN_FORM, *changed_settings(context, entries, values, first)}
        if values.mode == "YAML"
        else {*settings}
    )
    from hra_diffusion.models.meta import meta_pipeline  # takes seconds to import

    pipe = context.session.pipe if context.session.loaded else meta_pipeline(first.base)
    shapes = layer_shapes(pipe, first)
    size = count_parameters(first.method, first.options, shapes)
    runs = []
    for method in values.several:
        same = method == first.method
        own = {key: value for key, value in settings.items() if same or (key in by_hand and key != "options")}
        options = _parse({**own, "method": method}).options
        rank = matched_rank(method, options, shapes, size)
        runs.append(_parse({**own, "method": method, "options": options | {"rank": rank}}))
    return runs


def queue_runs(
    context: AppContext, entries: Sequence[form.Entry], draft: Draft, base: str, values: FormValues
) -> list[str]:
    """Put the planned runs into the queue and return their names.

    ``base``: the base model the visitor sees; another visitor may have changed it in the meantime.
    Raises UserError if something is missing or invalid; then nothing is written.
    """
    name = (values.name or "").strip()
    _require_complete(context, draft, base, values)
    runs = plan(context, entries, values)
    names = [f"{name}-{config.method}" for config in runs] if values.several else [name]
    for new in names:
        if (context.output / validated_name(new)).exists():
            raise UserError(f"{new!r} exists already; choose another name")
    photos = free_photo_folder(context.output, name).resolve()
    boxes = {str(path): box for path, box in draft.copy_photos(photos).items()}
    with context.queue.index.writing():
        try:
            quotas.require_turns(context, len(runs))
        except UserError:
            remove(photos)
            raise
        for new, config in zip(names, runs, strict=True):
            settings = config.model_dump(mode="json") | {"name": new, "class_noun": values.noun}
            config = configs.parse(settings | {"photos": [str(photos)], "boxes": boxes} | context.cluster)
            context.queue.add(config, Owner(owner=context.person.name))
    context.queue.start()
    return names


def _require_complete(context: AppContext, draft: Draft, base: str, values: FormValues) -> None:
    if base != context.session.base:
        raise UserError(
            f"the base model in use is {base_name(context.session.base)}, not {base_name(base)}: it has just been "
            "changed, or changes once the current generation ends; check it above, then press Train again"
        )
    if not draft.read().photos:
        raise UserError("No photos yet. Drop 3 to 10 photos of the subject first.")
    if not values.noun or not (values.name or "").strip():
        raise UserError("Say what it is (“dog”) and give it a name (“Rex”).")
