"""The folder of a published adapter: its files, samples, settings and a model card."""

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCardData

from hra_diffusion import interop, yaml_text
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.adapter_file import AdapterInfo
from hra_diffusion.errors import UserError
from hra_diffusion.files import atomic_path, make_folder, sha256, write_text
from hra_diffusion.hub import is_hub_id
from hra_diffusion.models import hub
from hra_diffusion.models.sources import TOYBOX
from training.config import TrainConfig
from training.runs import lookup

CARD, SETTINGS, SAMPLES, PHOTOS = "README.md", "training.yaml", "samples", "photos"
LORA = "pytorch_lora_weights.safetensors"
"""The plain LoRA, under the name that diffusers looks for."""
LICENSES = {
    TOYBOX: "apache-2.0",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
    "stabilityai/stable-diffusion-xl-base-1.0": "openrail++",
}
"""Licences of base models that are known without asking the hub."""
HUB_LICENSES = (
    "apache-2.0",
    "mit",
    "openrail",
    "openrail++",
    "creativeml-openrail-m",
    "bigscience-openrail-m",
    "other",
)
"""Identifiers of licences on the hub; others are given as "other" with their name."""


@dataclass(frozen=True)
class Publication:
    """An adapter to publish.

    Attributes:
        file, info: the adapter's file and metadata.
        config: settings of its run, if it has one.
        license: licence of the base model.
        samples: images that the adapter made.
        photos: photos of the subject, only if they are to be published.
        repository: "owner/name" on the hub.
    """

    file: Path
    info: AdapterInfo
    config: TrainConfig | None
    license: str
    samples: Sequence[Path]
    photos: Sequence[Path]
    repository: str


def license_of(base: str) -> str:
    """Return the licence of a base model. Raises UserError if neither this program nor the hub knows it."""
    if base in LICENSES:
        return LICENSES[base]
    found = hub.find_base(base).license if is_hub_id(base) else "not stated"
    if found == "not stated":
        raise UserError(f"the licence of {base} is not known; give it by --license, such as --license openrail++")
    return found


def publication_of(
    file: Path, info: AdapterInfo, repository: str, license: str | None, with_photos: bool
) -> Publication:
    """Return what there is to publish about an adapter. ``with_photos``: include the photos that its run has kept."""
    run = lookup.run_of(file)
    photos = sorted((run.folder / "photos").glob("[!.]*.png")) if run and with_photos else []
    if with_photos and not photos:
        raise UserError(f"the run of {info.name} has kept no photos; leave out --with-photos")
    return Publication(
        file, info, run.config if run else None, license or license_of(info.base), lookup.samples_of(file), photos,
        repository,
    )  # fmt: skip


def write_folder(publication: Publication, pipe: DiffusionPipeline, name: str, folder: Path) -> list[Path]:
    """Write the folder of a publication, whole or not at all, and return its files.

    Args:
        pipe: the base model, with the adapter loaded.
        name: the adapter's name on ``pipe``.
        folder: must not exist. Raises UserError if it does.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already; delete it, or choose another folder with --output")
    with atomic_path(folder) as unfinished:
        own = make_folder(unfinished) / f"{publication.info.name}.safetensors"
        shutil.copyfile(publication.file, own)
        lora = interop.export(pipe, name, "diffusers", unfinished / LORA, info=publication.info)
        for part, files in ((SAMPLES, publication.samples), (PHOTOS, publication.photos)):
            for number, file in enumerate(files):
                shutil.copyfile(file, make_folder(unfinished / part) / f"{number:02d}.png")
        if publication.config:
            write_text(unfinished / SETTINGS, yaml_text.write(public_settings(publication.config, publication.info)))
        hashes = {file.name: sha256(file) for file in (own, lora.path)}
        write_text(unfinished / CARD, _card(publication, lora.shape, hashes))
    return sorted(path for path in folder.rglob("*") if path.is_file())


def public_settings(config: TrainConfig, info: AdapterInfo) -> dict[str, Any]:
    """Return the settings of a run without paths of this machine."""
    settings = config.model_dump(mode="json", exclude={"boxes", "init_adapter", "device", "report_to"})
    return settings | {"photos": [PHOTOS], "base": info.base if Path(config.base).exists() else config.base}


def _card(publication: Publication, lora: str, hashes: Mapping[str, str]) -> str:
    """Return the model card. ``lora``: the form of the plain LoRA; ``hashes``: SHA-256 by file name."""
    info, record = publication.info, publication.info.training
    known = publication.license if publication.license in HUB_LICENSES else "other"
    samples = [f"{SAMPLES}/{number:02d}.png" for number in range(len(publication.samples))]
    prompt = f"a photo of a {info.subject}" if info.subject else "a photo"
    data = ModelCardData(
        base_model=info.base if is_hub_id(info.base) else None, library_name="diffusers", license=known,
        license_name=publication.license if known == "other" else None, pipeline_tag="text-to-image",
        tags=["hra-diffusion", info.method, lora.split()[0].lower(), "text-to-image"],
        instance_prompt=info.subject or None,
        widget=[{"text": prompt, "output": {"url": sample}} for sample in samples] or None,
    )  # fmt: skip
    figures = {"method": registry.get_method(info.method).title, **info.options}
    figures |= {name: value for name, value in record.items() if name in ("step", "photos", "init_sha256")}
    config = publication.config
    command = ["hra-diffusion", "train", "--config", SETTINGS, "--photos", f"{PHOTOS}/"]
    return jinja2.Template(CARD_TEMPLATE, trim_blocks=True, undefined=jinja2.StrictUndefined).render(
        data=data.to_yaml(), info=info, publication=publication, prompt=prompt, samples=samples, lora=lora,
        hashes=hashes, figures=figures, settings=SETTINGS if config else "", lora_file=LORA,
        version=version("hra-diffusion"),
        command=shlex.join([*command, *(["--init-adapter", "FILE"] if config and config.init_adapter else [])]),
    )  # fmt: skip


CARD_TEMPLATE = """\
---
{{ data }}
---

# {{ info.name }}

{{ figures.method }} adapter for `{{ info.base }}`.
{% if info.subject %}
In prompts its subject is **{{ info.subject }}**.
{% endif %}

{% for sample in samples %}
![sample]({{ sample }})
{% endfor %}

## Use

```python
import hra_diffusion as hra

pipe = hra.load_base("{{ info.base }}")
hra.load(pipe, "{{ publication.repository }}:{{ info.name }}.safetensors")
(image,) = hra.generate(pipe, "{{ prompt }}")
```

`{{ lora_file }}` is the same adapter as a {{ lora }}, which diffusers
(`pipe.load_lora_weights("{{ publication.repository }}")`) and other programs load.

## Training

| | |
|---|---|
{% for name, value in figures.items() %}
| {{ name | replace("_", " ") }} | {{ value }} |
{% endfor %}

{% if settings %}
hra-diffusion {{ version }} trained it with the settings in `{{ settings }}`:

```bash
{{ command }}
```

{% if publication.photos %}The photos are small copies.{% else %}The photos are not published.{% endif %}

{% endif %}

## Licence

The licence of the base model is {{ publication.license }}.

## Files

| file | SHA-256 |
|---|---|
{% for name, digest in hashes.items() %}
| `{{ name }}` | `{{ digest }}` |
{% endfor %}
"""
