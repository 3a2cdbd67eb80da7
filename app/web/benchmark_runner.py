"""Run the page's benchmarks: runs are trained in the queue, pictures are drawn in turn with those of the visitors."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from app.inference_session import Cancelled, import_libraries
from app.inference_session import Result as Watched
from app.protocols import plan as plans
from app.protocols import running
from app.protocols.cells import Benchmark, Cell, Result
from app.protocols.estimate import pictures_of
from app.protocols.plan import Plan
from app.protocols.scoring import Scorer
from app.web.context import AppContext
from app.web.status_bar import base_name
from app.web.train_config import absolute_base
from hra_diffusion.errors import UserError
from hra_diffusion.generation.previews import OnStep
from hra_diffusion.generation.requests import Settings, complete_settings
from training.runs import leases
from training.runs.owners import Owner

T = TypeVar("T")
LEASE = "benchmark"
"""The resource of the lease of the page that runs the benchmarks of an outputs folder."""


class OtherBase(Cancelled):
    """The page has another base model than the benchmark."""


def run_waiting(context: AppContext) -> None:
    """Run the waiting benchmarks, one after another, unless another page of this outputs folder does."""
    with leases.held(context.queue.index, LEASE, "benchmark", "a page's benchmarks") as holder:
        if holder is None:
            return
        context.benchmarks.wake.clear()
        while waiting := context.benchmarks.waiting(context.output):
            run(context, waiting[0])


def run(context: AppContext, folder: Path) -> None:
    """Run a benchmark until it ends or is stopped."""
    queue = context.benchmarks
    try:
        with queue.running(folder) as cancelled:
            import_libraries()
            if (plan := plans.read(folder)) is None:
                raise UserError("its plan is missing")
            failures = _run_cells(context, folder, plan, cancelled)
        lines = [f"{cell.variant}, seed {cell.seed}: {reason}" for cell, reason in failures.items()]
        queue.write(folder, status="finished", step="", notes=tuple(lines))
    except Cancelled as error:
        queue.write(folder, status="stopped", step="", notes=(str(error),) if isinstance(error, OtherBase) else ())
    except Exception as error:
        queue.write(folder, status="failed", step="", notes=(str(error),))
        if not isinstance(error, UserError):
            raise


def _run_cells(context: AppContext, folder: Path, plan: Plan, cancelled: threading.Event) -> dict[Cell, str]:
    """Run the missing cells, and write the results after each. Returns those that failed. Raises Cancelled."""
    queue, session, subjects = context.benchmarks, context.session, plan.load_subjects()
    benchmark = Benchmark(
        folder, context.output, plan, subjects, lambda: session.pipe, Scorer(subjects, 0),
        owner=Owner(owner=queue.state(folder).owner), cancelled=cancelled,
    )  # fmt: skip

    def measure(cell: Cell) -> Result:
        scored = _with_scorer(context, benchmark)
        result = scored.measure(cell, lambda step: _raise_if_set(cancelled))
        running.write_results(scored, dict.fromkeys(benchmark.missing(), "not done yet"))
        return result

    def run_cell(cell: Cell) -> Result:
        benchmark.train(cell)
        return _in_turn(context, benchmark, lambda: measure(cell), pictures_of(plan, subjects, cell))

    def begin(step: running.Step) -> str:
        queue.begin(folder, str(step))
        return ""

    _in_turn(context, benchmark, lambda: _with_scorer(context, benchmark))  # before anything is trained
    failures = running.run_cells(benchmark, run_cell, begin, lambda text: None)
    _in_turn(context, benchmark, lambda: running.write_results(_with_scorer(context, benchmark), failures))
    return failures


def _with_scorer(context: AppContext, benchmark: Benchmark) -> Benchmark:
    """Return the benchmark with the page's CLIP model, which is unloaded while a run needs its memory."""
    session = context.session
    if (clip := session.clip) is None:
        raise UserError(session.unscored)
    size = complete_settings(session.pipe, Settings()).width
    return dataclasses.replace(benchmark, scorer=Scorer(benchmark.subjects, size, clip))


def _in_turn(context: AppContext, benchmark: Benchmark, function: Callable[[], T], pictures: int = 0) -> T:
    """Call a function that uses the base model, when it is its turn; return its value.

    ``pictures``: how many it draws. Raises Cancelled, and OtherBase.
    """
    session, plan, cancelled = context.session, benchmark.plan, benchmark.cancelled
    cost = context.cost(Settings(plan.denoising_steps), pictures)
    name = f"benchmark {benchmark.folder}"

    def call(on_step: OnStep) -> T:
        if absolute_base(session.base) != plan.base["base"]:
            wanted = base_name(plan.base["base"])
            raise OtherBase(f"the page uses another base model now; choose {wanted} above, then press Continue")
        return function()

    with context.drawings.place(name, cost, name) as turn:
        for _ in context.drawings.wait(turn):
            _raise_if_set(cancelled)
        for update in session.watch(call, max(1, pictures), turn.cancelled):
            if isinstance(update, Watched):
                return update.value
            _raise_if_set(cancelled)
    raise Cancelled("stopped")


def _raise_if_set(cancelled: threading.Event) -> None:
    if cancelled.is_set():
        raise Cancelled("stopped")
