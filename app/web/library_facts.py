"""The Library tab's panel: what is known about one adapter, and which programs load it."""

from markupsafe import Markup

from app.inference_session import import_libraries
from app.web.context import AppContext
from app.web.html import facts, render
from app.web.library_cards import incompatibility, method_title
from app.web.library_files import FORMAT_NAMES, OWN
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.adapter_file import AdapterInfo, read_info
from hra_diffusion.library import count_parameters
from training.runs import lookup

MAX_SAMPLES = 3


def show_facts(context: AppContext, key: str) -> Markup:
    """Return an adapter's facts and samples, with a warning if it is incompatible with the base model in use."""
    path = context.adapter_path(key)
    info = read_info(path)
    layers = sum(len(probes) for probes in info.fingerprint.values())
    options = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in info.options.items() if value is not None)
    summary = facts([
        ("in prompts", info.prompt_names), ("method", method_title(info.method)), ("base model", info.base),
        ("trained on", _training_cost(info)), ("size", f"{path.stat().st_size / 1e6:.2f} MB"),
    ])  # fmt: skip
    details = facts([
        ("options", options), ("layers", f"{layers} ({info.targets})"),
        ("parameters", f"{count_parameters(path):,}".replace(",", " ")), ("preset", info.training.get("preset", "")),
        ("learning rate", info.training.get("learning_rate", "")), ("seed", info.training.get("seed", "")),
        ("file", key),
    ])  # fmt: skip
    samples = lookup.samples_of(path)[:MAX_SAMPLES]
    return render(
        "library_facts", name=info.name, warning=incompatibility(context, path), samples=samples, summary=summary,
        details=details,
    )  # fmt: skip


def _training_cost(info: AdapterInfo) -> str:
    """Return photos, steps, seconds and peak memory, as far as the file records them."""
    training = info.training
    parts = []
    if "step" in training:
        seconds = sum(training.get("seconds", {}).values())
        photos = [f"{training['photos']} photos"] if "photos" in training else []
        parts += [*photos, f"{training['step']} steps", f"{seconds:.0f} s"]
    if "memory" in training:
        parts.append(f"{training['memory'] / 2**30:.1f} GiB")
    return ", ".join(parts)


def show_compatibility(info: AdapterInfo) -> Markup:
    """Return the export formats of an adapter and how well each program loads them."""
    if info.method not in registry.method_names():
        return Markup("")
    import_libraries()
    from hra_diffusion.interop import compatibility

    formats: dict[str, dict[str, list[str]]] = {}
    for row in compatibility.expected_exports(info.method, compatibility.family_of(info)):
        if row.form != "folder":  # the page writes single files
            formats.setdefault(FORMAT_NAMES[row.format], {}).setdefault(row.loads, []).append(row.program)
    places = {
        name: "; ".join(f"{how}: {', '.join(programs)}" for how, programs in found.items())
        for name, found in formats.items()
    }
    return render("library_places", places=facts([(FORMAT_NAMES[OWN], "exactly: hra-diffusion"), *places.items()]))
