"""The processes of a run on several devices, which agree on every step, stop, failure and step-down.

Each process computes its gradients alone. Before they are averaged, all exchange their status on the CPU. A process
that failed or ran out of memory exchanges it, too, wherever that happened. None then waits for another, and all end, or
continue with less memory, after the same step.
"""

import enum
import struct
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn

from hra_diffusion.errors import UserError
from training.errors import TrainingError
from training.memory.savings import is_out_of_memory

TIMEOUT = timedelta(hours=12)
"""How long processes wait for another: the main process generates class images meanwhile."""
_HEADER, _BYTES = struct.Struct("<BQ"), 512
"""Status and step of a process, followed by its message in UTF-8."""


class Status(enum.IntEnum):
    """What a process tells the others. The highest one counts."""

    OK = 0
    STOP = 1
    OUT_OF_MEMORY = 2
    FAILED = 3


class PeerOutOfMemoryError(RuntimeError):
    """Another process ran out of memory."""


class PeerFailedError(TrainingError):
    """Another process failed. The message says which one, and why."""


class PeerLostError(PeerFailedError):
    """Another process has ended without telling the others."""


class Processes:
    """The processes of a run; all methods do nothing if there is only one.

    Attributes:
        agreeing: whether all are set up; from then on, they exchange their errors.
    """

    def __init__(self, accelerator: Accelerator):
        self.count, self.index, self.agreeing = accelerator.num_processes, accelerator.process_index, False
        self._known: Exception | None = None
        # on the CPU, so that the devices are not waited for
        self._group: Any = distributed.new_group(backend="gloo", timeout=TIMEOUT) if self.count > 1 else None

    def agree(self, step: int, status: Status = Status.OK, message: str = "") -> bool:
        """Exchange the status of all processes after ``step``, and return whether any was asked to stop.

        Raises PeerFailedError or PeerOutOfMemoryError if one failed or ran out of memory, this one included, or if they
        are not at the same step.
        """
        if self.count == 1:
            return status is Status.STOP
        found = [_unpacked(row) for row in self._gathered(_packed(status, step, message))]
        worst, _, text = max(found, key=lambda row: row[0])
        index = next(number for number, row in enumerate(found) if row[0] == worst)
        if worst is Status.FAILED:
            raise PeerFailedError(f"process {index} failed: {text}")
        if len({step for _, step, _ in found}) > 1:
            steps = ", ".join(str(step) for _, step, _ in found)
            raise PeerFailedError(f"the processes are at different steps ({steps}); resume from the last checkpoint")
        if worst is Status.OUT_OF_MEMORY:
            raise PeerOutOfMemoryError(f"process {index} is out of memory: {text}")
        return worst is Status.STOP

    def report(self, step: int, error: Exception) -> None:
        """Tell the other processes of an error after ``step``, unless it came from them or they know it.

        Raises PeerFailedError if this process is only out of memory, and another one failed.
        """
        if self.count == 1 or error is self._known or isinstance(error, PeerOutOfMemoryError | PeerFailedError):
            return
        self._known = error
        status = Status.OUT_OF_MEMORY if ran_out_of_memory(error) else Status.FAILED
        try:
            self.agree(step, status, str(error))
        except PeerOutOfMemoryError:
            return
        except PeerFailedError:
            if status is Status.OUT_OF_MEMORY:
                raise

    def average_gradients(self, step: int, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of this process by the mean over all processes."""
        if self.count == 1:
            return
        parameters = list(parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.agree(step)
        distributed.all_reduce(flat)
        means = (flat / self.count).split([parameter.numel() for parameter in parameters])
        for parameter, mean in zip(parameters, means, strict=True):
            parameter.grad = mean.view_as(parameter)

    def average(self, step: int, values: Tensor) -> Tensor:
        """Return the mean of a tensor on the CPU over all processes."""
        if self.count == 1:
            return values
        self.agree(step)
        total = values.clone()
        distributed.all_reduce(total, group=self._group)
        return total / self.count

    def share(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give all processes the values of the main process."""
        for parameter in parameters if self.count > 1 else ():
            distributed.broadcast(parameter.data, 0)

    def _gathered(self, row: Tensor) -> list[Tensor]:
        rows = [torch.empty_like(row) for _ in range(self.count)]
        try:
            distributed.all_gather(rows, row, group=self._group)
        except RuntimeError as error:
            raise PeerLostError("another process has ended without a message; its output says why") from error
        return rows


def ran_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory ran out here or in another process, and that less may do."""
    return not isinstance(error, UserError) and is_out_of_memory(error)


def _packed(status: Status, step: int, message: str) -> Tensor:
    text = message.encode()[: _BYTES - _HEADER.size]
    data = (_HEADER.pack(status, step) + text).ljust(_BYTES, b"\0")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _unpacked(row: Tensor) -> tuple[Status, int, str]:
    data = bytes(row.tolist())
    status, step = _HEADER.unpack_from(data)
    return Status(status), step, data[_HEADER.size :].rstrip(b"\0").decode(errors="ignore")
