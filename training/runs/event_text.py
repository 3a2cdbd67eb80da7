"""Events of a run as text."""

import time
from pathlib import Path
from typing import Any

from training.runs.events import Captions, Plan

PHASES = {
    "load base": "loading the base model",
    "read photos": "reading the photos",
    "class images": "generating pictures of the class, so that the model does not forget it",
    "cache": "encoding the photos",
    "train": "training",
    "validation": "computing the validation loss",
    "samples": "generating sample pictures",
    "scores": "comparing the sample pictures with the photos",
}
"""Description of each phase for the user."""


def event_line(event: dict[str, Any]) -> str:
    """Return a line for an event of the log, with its time of day."""
    clock = time.strftime("%H:%M:%S", time.localtime(event.get("time", 0)))
    match event:
        case {"event": "phase", "name": name}:
            text = PHASES.get(name, name)
        case {"event": "step", "step": step, "total": total, "loss": loss}:
            text = f"step {step} of {total}, loss {loss:.4f}"
        case {"event": "failed", "reason": reason}:
            text = f"failed: {reason}"
        case {"event": "notice", "message": message}:
            text = f"note: {message}"
        case {"event": "plan", "memory": memory}:
            text = f"about {memory / 2**30:.1f} GB of memory (predicted)"
        case {"event": "captions", "captions": captions, "added": added}:
            text = f"captions of {len(captions)} photos, the trigger added to {len(added)}"
        case {"event": "validated", "step": step, "loss": loss}:
            text = f"validation loss after step {step}: {loss:.4f}"
        case {"event": "best", "reason": reason}:
            text = reason
        case {"event": "scored", "step": step, "subject": subject, "prompt": prompt}:
            text = f"samples of step {step}: similarity to the photos {subject:.2f}, to the prompts {prompt:.2f}"
        case {"event": kind, "step": step}:
            text = f"{kind} at step {step}"
        case _:
            text = str(event.get("event"))
    return f"{clock}  {text}"


def plan_line(plan: Plan) -> str:
    """Return a line with the predicted memory and time of a run."""
    minutes = f", about {max(1, round(plan.seconds / 60))} min" if plan.seconds is not None else ""
    return f"about {plan.memory / 2**30:.1f} GB of memory on {plan.device}, most in {plan.phase!r} (predicted){minutes}"


def caption_lines(event: Captions) -> list[str]:
    """Return a line for each distinct caption with the names of its photos, and one about added triggers."""
    photos: dict[str, list[str]] = {}
    for path, caption in event.captions.items():
        photos.setdefault(caption, []).append(Path(path).name)
    lines = [f'caption of {", ".join(names)}: "{caption}"' for caption, names in photos.items()]
    if len(lines) == 1:
        lines = [f'caption of every photo: "{next(iter(photos))}"']
    if event.added:
        lines.append(f"the trigger was added to {len(event.added)} of {len(event.captions)} captions, which lacked it")
    return [*lines, *event.coverage]
