"""The processes that train one model together: one alone, or those that torchrun has started."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mooring.finetune.devices import usable_device
from mooring.finetune.errors import SpecError

_ROLL_CALL = 3.0  # seconds that the others are given to answer when one of them was lost
_BROKEN = (
    "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe", "Socket Timeout",
    "gloo/transport",
)  # fmt: skip
"""What torch's errors say; more telling ones first."""


@dataclass
class Team:
    """This process among those that train together. One alone is the default, and then nothing here communicates.

    Attributes:
        rank: Which of them this is.
        size: How many there are.
        local_rank: Which of this machine's.
        mesh: torch's device mesh over all of them; None alone.
        store: The key-value store that they met at; None alone.
        stop_asked: Whether this process was asked to stop; the others learn of it with the next gradient.
        stopping: Whether any of them was: it becomes true in all of them at the same step.
        training: Whether steps are being taken, so that a request to stop waits for the end of one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    mesh: Any = None
    store: Any = None
    stop_asked: bool = False
    stopping: bool = False
    training: bool = False

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    @property
    def group(self) -> Any:
        """The process group of all of them."""
        return self.mesh.get_group()

    def device(self, name: str) -> torch.device:
        """The device of this process: the one named, or of several processes the one of its ``LOCAL_RANK``.

        Raises:
            SpecError: There is no such device here.
        """
        if self.size > 1 and name == "cuda":
            name = f"cuda:{self.local_rank}"
        return usable_device(name)

    def part(self, count: int) -> slice:
        """This process's share of so many rows: contiguous, the first processes taking one more where it is uneven."""
        each, over = divmod(count, self.size)
        begin = self.rank * each + min(self.rank, over)
        return slice(begin, begin + each + (self.rank < over))

    def mean(self, loss: Tensor, count: int) -> tuple[float, float]:
        """The mean loss over the labels of all processes, and the factor of this process's loss before ``backward``.

        FSDP averages gradients over processes. With a mean over ``n_r`` labels in each, the gradient of the mean over
        all labels is that average where every loss is multiplied by ``size * n_r / sum(n)``, which is 1 for equal
        parts. One collective of three numbers, which also tells everybody whether somebody was asked to stop.
        """
        if self.size == 1:
            self.stopping = self.stop_asked
            return loss.item(), 1.0
        sums = torch.tensor([loss.item() * count, count, float(self.stop_asked)], dtype=torch.float64)
        dist.all_reduce(sums)
        total, labels, stops = sums.tolist()
        self.stopping = stops > 0
        return total / labels, self.size * count / labels

    def from_first(self, value: Any) -> Any:
        """What the first process has here; the others' own values are not used."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def from_all(self, value: Any) -> list[Any]:
        """What every process has here, in the order of ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            dist.barrier()

    def answer(self) -> None:
        """Say that this process is there, for `missing`."""
        if self.store is not None:
            self.store.set(f"alive/{self.rank}", b"1")

    def missing(self) -> list[int]:
        """The processes that have not answered after a few seconds; none where that cannot be found out."""
        if self.store is None:
            return []
        try:
            self.answer()
            until = time.monotonic() + _ROLL_CALL
            absent = list(range(self.size))
            while absent and time.monotonic() < until:
                absent = [rank for rank in absent if not self.store.check([f"alive/{rank}"])]
                time.sleep(0.05)
        except RuntimeError:  # the store itself is gone, with the machine that held it
            return []
        return absent

    def first_says(self, text: str) -> bool:
        """Whether the first process fails with the same message, and this is another one, which then need not."""
        if self.store is None:
            return False
        try:
            self.store.set(f"failed/{self.rank}", text)
            until = time.monotonic() + _ROLL_CALL / 3
            while not self.first and time.monotonic() < until:
                if self.store.check(["failed/0"]):
                    return bool(self.store.get("failed/0").decode() == text)
                time.sleep(0.05)
        except RuntimeError:
            pass
        return False

    def leave(self) -> None:
        """End the group in order. Whatever holds sharded tensors has to be dropped before.

        gloo's threads may outlive the interpreter and abort a process that has done its work, so everybody comes here
        first, the last tensors go, and the group is destroyed.
        """
        if self.size > 1:
            dist.barrier()
            self.mesh = self.store = None
            gc.collect()
            dist.destroy_process_group()


ALONE = Team()
"""One process. It holds no state that a trial would change: nobody asks it to stop."""


def processes_started() -> tuple[int, int]:
    """This process's rank and how many were started together, as torchrun's environment says; 0 and 1 without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def join(device: str, timeout: float) -> Team:
    """Meet the processes that torchrun started with this one; alone without it.

    Args:
        device: ``cpu``, whose processes talk by gloo, or ``cuda``, whose do by NCCL, each on the device of its
            ``LOCAL_RANK``.
        timeout: Seconds after which a process that does not answer is taken for lost.

    Raises:
        SpecError: The device is one of several on a machine, or there is none for this process, or the others cannot
            be found.
    """
    rank, size = processes_started()
    if size == 1:
        return Team()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device not in ("cpu", "cuda"):
        raise SpecError(f"device {device!r}: with several processes write cpu or cuda; each takes that of its rank")
    wait = timedelta(seconds=timeout)
    if device == "cuda":
        torch.cuda.set_device(usable_device(f"cuda:{local_rank}"))
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(iter(rendezvous("env://", rank, size, timeout=wait)))
    except (ValueError, dist.DistError) as error:
        raise SpecError(
            f"process {rank} of {size} (RANK, WORLD_SIZE) could not meet the others: {error}; start them with torchrun"
        ) from None
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend, store=dist.distributed_c10d.PrefixStore("mooring", store), rank=rank, world_size=size, timeout=wait
    )
    mesh = init_device_mesh(device, (size,))
    return Team(rank, size, local_rank, mesh, dist.distributed_c10d.PrefixStore("mooring-alive", store))


def lost_contact(error: BaseException | None) -> str:
    """What an error, or one that it came from, says of the connection to another process; empty where it says none."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        found = [text for text in _BROKEN if text in str(error)]
        if found or isinstance(error, dist.DistError):
            return found[0] if found else str(error).partition("\n")[0]
        error = error.__cause__ or error.__context__
    return ""
