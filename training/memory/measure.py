"""Measuring what training costs: interleaved rounds, one bare step, memory in a process of its own, tables.

What other programs do to the machine falls on all contestants of a round alike, so that their ratios hold where their
seconds do not.
"""

import contextlib
import copy
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hra_diffusion import files
from hra_diffusion.allocator import retain_freed_memory
from hra_diffusion.libraries import hide_bitsandbytes

T = TypeVar("T")
ENOUGH = 3
"""Rounds below which a median is one machine's mood."""
LIBRARIES = ("torch", "diffusers", "transformers", "peft")


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: bool = True,
    minutes: float = 60,
    least: int = ENOUGH,
    alternate: bool = False,
) -> dict[str, list[float]]:
    """Seconds of each contestant, one after another in every round; a round before them warms up and does not count.

    After so many minutes no round begins, but ``least`` are measured whatever they take (if ``rounds`` asks for them).
    ``alternate``: every other round goes the other way round.
    """
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    start = time.perf_counter()
    for turn in range(-warm_up, rounds):
        if turn >= least and time.perf_counter() - start > 60 * minutes:
            break
        order = list(contestants.items())
        for name, contestant in reversed(order) if alternate and turn % 2 else order:
            took = seconds(contestant)
            if turn >= 0:
                spent[name].append(took)
    return spent


def seconds(work: Callable[[], object]) -> float:
    """Seconds until the work is done, the accelerator's too."""
    start = time.perf_counter()
    work()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def ratios(spent: Sequence[float], others: Sequence[float]) -> list[float]:
    """One against another, round by round."""
    return [one / other for one, other in zip(spent, others, strict=True)]


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """Median (least to most)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def twin(model: nn.Module) -> Any:
    """A copy of the model that shares its weights, to put other adapters on."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def training_step(
    unet: Any,
    parameters: Iterable[nn.Parameter],
    batch_size: int,
    side: int | None = None,
    penalty: Callable[[], Tensor | None] = lambda: None,
) -> Callable[[], None]:
    """One optimiser step on fixed inputs, as the trainer makes it: forward, loss, backward, clipping, AdamW.

    ``side``: of the latents; the base's own by default. ``penalty``: the method's regulariser (attachment.penalty).
    """
    retain_freed_memory()  # as a run does
    inputs, more = unet_inputs(unet, batch_size, side)
    noise, parameters = torch.randn_like(inputs[0]), list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

    def step() -> None:
        loss = F.mse_loss(unet(*inputs, **more).sample.float(), noise.float())
        if (more_loss := penalty()) is not None:
            loss = loss + more_loss.to(loss.device)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def bare_pass(unet: Any, batch_size: int, side: int | None = None) -> Callable[[], None]:
    """The floor of a step: forward, and backward through the activations alone, of the frozen model without adapters.

    The gradient goes back to the first attention, as that of an adapter there must. Changes the model: give a twin.
    """
    from diffusers.models.attention_processor import Attention  # takes seconds, and no command's --help waits for it

    retain_freed_memory()
    inputs, more = unet_inputs(unet, batch_size, side)
    spark = torch.zeros((), device=unet.device, requires_grad=True)
    first = next(module for module in unet.requires_grad_(False).modules() if isinstance(module, Attention))
    first.register_forward_pre_hook(lambda module, given: (given[0] + spark, *given[1:]))
    return lambda: unet(*inputs, **more).sample.float().square().mean().backward()


def unet_inputs(unet: Any, batch_size: int, side: int | None = None) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Noise, timesteps and text of the shapes that a UNet takes, random; and what Stable Diffusion XL takes beside."""
    config, place = unet.config, {"device": unet.device, "dtype": unet.dtype}
    size = [config.sample_size if side is None else side] * 2
    latents = torch.randn(batch_size, config.in_channels, *size, **place)
    text = torch.randn(batch_size, 77, config.cross_attention_dim, **place)
    timesteps = torch.randint(1000, (batch_size,), device=unet.device)
    more = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        kinds = {
            "text_embeds": torch.randn(batch_size, pooled, **place),
            "time_ids": torch.ones(batch_size, 6, **place),
        }
        more = {"added_cond_kwargs": kinds}
    return (latents, timesteps, text), more


def in_words(facts: Mapping[str, object]) -> str:
    """Facts of a machine in one line: "processor …, 2 cores, …"."""
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def in_subprocess(function: Callable[..., T], *arguments: Any) -> T:
    """The function's result from a fresh process: its peak of memory is its own. Both ends must be picklable."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=hide_bitsandbytes) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(device: str = "cpu") -> int:
    """The most bytes this process has held since ``forget_peak``: allocated on a CUDA device, else resident."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if files.WINDOWS:
        import psutil  # accelerate needs it, too

        return cast(Any, psutil.Process().memory_info()).peak_wset
    if (status := Path("/proc/self/status")).exists():  # getrusage counts the parent's peak too
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak(device: str = "cpu") -> int:
    """Count the peak from here on (resident memory: on Linux; elsewhere from the start); returns what is held now."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (switch := Path("/proc/self/clear_refs")).exists():
        switch.write_text("5")
    return peak_memory(device)


def machine() -> dict[str, str]:
    """What was measured on: processor and its widest instructions, memory, accelerator, versions, how busy it was."""
    widest = torch.backends.cpu.get_cpu_capability()
    found = {"processor": f"{_processor()} ({widest}), {os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    if hasattr(os, "sysconf"):
        found["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
        found["load average"] = f"{os.getloadavg()[0]:.1f}"
    found["GPU"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    found["python"] = platform.python_version()
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", facts.read_text()) if facts.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
