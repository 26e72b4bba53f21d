"""Workers of a Ray cluster: each order is a task, a generator whose items are the worker's messages.

A task runs in a worker process of Ray's, which takes the next one when it ends and keeps its compiled programs. Results
go into the results folder where all nodes see it, else as messages through the driver.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlsuite.errors import UserError
from rlsuite.sweeping import worker
from rlsuite.sweeping.chunk import Given
from rlsuite.sweeping.cluster import ENDS, Lost
from rlsuite.sweeping.entry import Entry
from rlsuite.sweeping.worker import Message, Order
from rlsuite.training.device import prepare_jax

QUEUED = 2
"""Orders that wait for a worker, so that none is idle while the driver is busy."""
UNREAD = 4
"""Messages of a task that the driver has not read, after which its worker waits."""
ASKED_SECONDS = 0.5
"""How often a worker asks whether it should leave."""
LOOK_SECONDS = 5.0
"""How often the cluster is asked how large it is."""
PASSED_ON = ("JAX_", "XLA_", "LIBTPU_")
"""What the names of the driver's variables begin with that workers get."""

LOST = (
    exceptions.NodeDiedError,
    exceptions.WorkerCrashedError,
    exceptions.ObjectLostError,
    exceptions.OutOfMemoryError,
    exceptions.LocalRayletDiedError,
)
FULL = (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError)


class Resources(NamedTuple):
    """What each worker asks for."""

    cpus: int = 1
    """cores, each a device where there is no GPU"""
    gpus: int = 0


class Switch:
    """An actor next to the driver that knows whether workers should leave."""

    def __init__(self) -> None:
        self._number = 0

    def ask(self, number: int) -> None:
        """All workers should leave, by a signal of this number."""
        self._number = number

    def asked(self) -> int:
        """The number; 0 for going on."""
        return self._number


class RayPool:
    """A pool of tasks; see `cluster.Pool`.

    Raises:
        UserError: there is no such cluster, it is of other versions of Ray or Python, or no node has what a worker
            asks for.
    """

    def __init__(self, folder: Path, address: str | None, resources: Resources, workers: int | None = None) -> None:
        """`address` as `ray.init` has it; None starts Ray on this machine. `workers` is the most to use."""
        self._resources, self._most = resources, workers
        self.devices = resources.gpus or resources.cpus
        self._tasks: dict[int, Any] = {}
        self._avoided: set[str] = set()
        """ids of nodes on which something is wrong, such as a full disk"""
        self._began: set[int] = set()
        self._looked, self._found = -LOOK_SECONDS, 1
        started = not ray.is_initialized()
        self._started = started
        variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Zero GPUs of a task need not hide all of them: JAX on a processor does not look.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if started:
            connect(address, variables)
        try:
            self._check()
            self._switch = self._make_switch()
            self._folder = folder.absolute() if self._seen(folder) else None
        except BaseException:
            self.close()
            raise

    def workers(self) -> int:
        """As many as the nodes have room for now, up to those that may be used."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked, self._found = now, max(1, sum(map(self._fitting, self._nodes())))
        return min(self._found, self._most or self._found)

    def room(self) -> bool:
        return len(self._tasks) < self.workers() + (QUEUED if self._most is None else 0)

    def share(self, given: Given | None) -> Any:
        return None if given is None else self._put(given, "a dataset")

    def submit(self, ticket: int, order: Order, entry: Entry, shared: Any) -> None:
        packed = None
        if self._folder is None and isinstance(order, worker.Train):
            newest = worker.newest_number(entry.snapshots(order.first, order.stop))
            if newest is not None:
                snapshot = worker.pack(entry.snapshots(order.first, order.stop) / str(newest))
                packed = self._put(snapshot, "a snapshot")
        task = ray.remote(follow).options(
            num_cpus=self._resources.cpus,
            num_gpus=self._resources.gpus,
            num_returns="streaming",
            label_selector={"ray.io/node-id": f"!in({','.join(sorted(self._avoided))})"} if self._avoided else None,
            max_retries=0,  # the driver knows where a chunk goes on
            _generator_backpressure_num_objects=UNREAD,
        )
        self._tasks[ticket] = task.remote(order, self._folder, packed, shared, self._resources, self._switch)

    def messages(self, seconds: float) -> Iterator[tuple[int, Message | Lost]]:
        if not self._tasks:
            time.sleep(seconds)
            return
        tickets = {task: ticket for ticket, task in self._tasks.items()}
        ready, _ = ray.wait(list(tickets), num_returns=len(tickets), timeout=0, fetch_local=False)
        if not ready:
            ready, _ = ray.wait(list(tickets), timeout=seconds, fetch_local=False)
        for task in ready:
            ticket = tickets[task]
            message = self._next(task)
            if isinstance(message, worker.Began):
                self._began.add(ticket)
            if message is None:  # after its last message
                continue
            if isinstance(message, ENDS):
                del self._tasks[ticket]
                self._began.discard(ticket)
            yield ticket, message

    def leave(self) -> None:
        ray.get(self._switch.ask.remote(2))
        for ticket, task in self._tasks.items():
            if ticket not in self._began:  # it may not even have a worker
                ray.cancel(task, force=True)

    def close(self) -> None:
        for task in self._tasks.values():
            with contextlib.suppress(exceptions.RayError):
                ray.cancel(task, force=True)
        self._tasks.clear()
        if self._started:
            ray.shutdown()

    def _next(self, task: Any) -> Message | Lost | None:
        try:
            node, message = ray.get(next(task))
            return self._avoiding(node, message)
        except StopIteration:
            return None
        except exceptions.TaskCancelledError:
            return worker.Left(held=False)
        except LOST as error:
            return Lost(" ".join(str(error).split())[:200])
        except FULL as error:
            return worker.Failed(full("a message", error), elsewhere=True)
        except exceptions.RayError as error:
            return worker.Failed(" ".join(str(error).split())[:200], False, str(error))

    def _avoiding(self, node: str, message: Message) -> Message:
        """The message, after which nothing more goes to its node if something is wrong there."""
        if not (isinstance(message, worker.Failed) and message.elsewhere):
            return message
        self._avoided.add(node)
        self._looked = -LOOK_SECONDS
        return message._replace(elsewhere=any(map(self._fitting, self._nodes())))

    def _put(self, value: Any, what: str) -> Any:
        try:
            return ray.put(value)
        except FULL as error:
            raise UserError(full(what, error)) from error

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in self._avoided]

    def _fitting(self, node: dict[str, Any]) -> int:
        """Workers that a node has room for."""
        there, wanted = node["Resources"], {"CPU": self._resources.cpus, "GPU": self._resources.gpus}
        return min(int(there.get(name, 0) // count) for name, count in wanted.items() if count)

    def _check(self) -> None:
        nodes = self._nodes()
        if not any(map(self._fitting, nodes)):
            most = [f"{max(node['Resources'].get(name, 0) for node in nodes):g} {name}s" for name in ("CPU", "GPU")]
            raise UserError(
                f"no node of the Ray cluster has {self._resources.cpus} CPUs and {self._resources.gpus} GPUs for a "
                f"worker; the most are {' and '.join(most)}; ask for less with --cpus and --gpus"
            )

    def _make_switch(self) -> Any:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return ray.remote(Switch).options(num_cpus=0, scheduling_strategy=here).remote()

    def _seen(self, folder: Path) -> bool:
        """Whether every node sees the results folder, by a file that lies there for a moment."""
        for old in folder.glob(".seen-*"):  # of a driver that was killed
            old.unlink(missing_ok=True)
        probe = folder.absolute() / f".seen-{uuid.uuid4().hex}"
        probe.touch()
        try:
            look = ray.remote(os.path.exists)
            strategies = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in self._nodes()]
            asked = [look.options(num_cpus=0, scheduling_strategy=each).remote(str(probe)) for each in strategies]
            return all(ray.get(asked))
        except exceptions.RayError:  # a node has died meanwhile; messages reach the driver in any case
            return False
        finally:
            probe.unlink(missing_ok=True)


def connect(address: str | None, variables: dict[str, str]) -> None:
    """Start Ray on this machine, or use the cluster at an address. Workers get the `variables`."""
    # "local", since None would look for a cluster that was started here some time ago.
    own = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    here = own if address is None else {"address": address}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="os.fork")  # what Ray starts does not use JAX' threads
            ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": variables}, **here)
    except (ConnectionError, ValueError, RuntimeError, exceptions.RayError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"no Ray cluster at '{address or 'this machine'}' can be used ({reason}); start one with "
            "'ray start --head', give its --address, or leave that out to have one started here"
        ) from error


def full(what: str, error: Exception) -> str:
    """What to say of an object store that is too small."""
    reason = " ".join(str(error).split())[:120]
    return (
        f"Ray's object store cannot take {what} ({reason}); give it more with 'ray start --object-store-memory', or "
        "use a results folder that all nodes see"
    )


# --- On a worker ------------------------------------------------------------------------------------------------------


def follow(
    order: Order,
    folder: Path | None,
    packed: bytes | None,
    given: Given | None,
    resources: Resources,
    switch: Any,
) -> Iterator[tuple[str, Message]]:
    """Do an order in a thread, and give this node's id with each message as it comes."""
    node = ray.get_runtime_context().get_node_id()
    prepare_jax(resources.cpus)
    messages: queue.Queue[Message | None] = queue.Queue(maxsize=1)
    asked = asking(switch)

    def train(order: worker.Train) -> None:
        if folder is None:
            worker.by_parcel(order, packed, given, messages.put, asked)
        else:
            worker.in_folder(order, folder, given, messages.put, asked)

    def work() -> None:
        worker.answer(order, given, messages.put, train)
        messages.put(None)

    threading.Thread(target=work, daemon=True).start()
    while (message := messages.get()) is not None:  # no `yield from`: Ray wants a plain generator
        yield node, message


def asking(switch: Any) -> Callable[[], int]:
    """Whether the driver has asked to leave, looked at now and then."""
    looked, number = 0.0, 0

    def asked() -> int:
        nonlocal looked, number
        if not number and time.monotonic() - looked >= ASKED_SECONDS:
            looked, number = time.monotonic(), ray.get(switch.asked.remote())
        return number

    return asked
