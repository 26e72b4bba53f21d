"""The executor that runs shards one after another in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import numpy as np

import envs
import rlsuite
from envs import Reference
from envs.datasets import Dataset
from envs.mujoco_c import WithC
from rlsuite import algorithms
from rlsuite.errors import Stopped, UserError
from rlsuite.sweeping import catalogue, collect, policies, provenance, sweep
from rlsuite.sweeping.store import Part, Store
from rlsuite.sweeping.sweep import Shard
from rlsuite.training import memory
from rlsuite.training import plan as planning
from rlsuite.training.checkpoint import Snapshot, Snapshots
from rlsuite.training.device import describe_device
from rlsuite.training.plan import Limits, Plan, Work
from rlsuite.training.progress import Progress, duration, live, quantity, say
from rlsuite.training.train import Training, evaluation_points, train

PACKAGES = ("jax", "jaxlib", "flax", "optax", "brax", "mujoco", "mujoco-mjx", "gymnasium", "gymnax", "numpy")
WAITING_SECONDS = 1.0
"""How often a shard that another process runs is looked at."""


class Settings(NamedTuple):
    """How shards run; none of it changes what a run computes, but for the order of floating-point sums."""

    limits: Limits = Limits()
    save_every: float = 300.0
    """seconds between two snapshots of a running chunk; 0 saves at every pause"""
    save_policies: bool = False
    """keep what every run has learned, beside its results, see `rlsuite/sweeping/policies.py`"""
    retrain: bool = False
    """train finished shards again, and begin an unfinished one anew if other code has begun it"""


class Signals:
    """SIGINT and SIGTERM, noted while the context lasts. A second one acts as it always does."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()
        with contextlib.suppress(RuntimeError):  # it came while this very process was printing
            say(f"\n{signal.Signals(number).name}: finishing the segment and saving; once more to leave at once")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def check(self) -> None:
        """Raise Stopped if one has come."""
        if self.number is not None:
            raise Stopped(self.number)


def run(shards: Sequence[Shard], store: Store, settings: Settings | None = None) -> None:
    """Run the shards that the store does not hold yet, writing every evaluation as it comes.

    Shards that another process runs are left to it; when nothing else is left, this waits for them. With
    `Settings.retrain`, those that are finished now are set aside, each once it is this process' turn to run it, and run
    again; one that another process has finished meanwhile is kept.

    Raises:
        UserError: the store cannot be written any more, a run does not fit, or the package that brings the algorithm or
            the environment of a shard has changed since; evaluations written before stay.
        Stopped: by SIGINT or SIGTERM, after saving.
    """
    settings = settings or Settings()
    began = time.perf_counter()
    titles = {
        shard.name: f"[{i}/{len(shards)}] {shard.label} on {shard.environment}, {len(shard.runs)} runs"
        for i, shard in enumerate(shards, start=1)
    }
    waiting = list(shards)
    stale = {shard.name: stamp(store.path(shard)) for shard in shards} if settings.retrain else {}
    with Signals() as signals:
        told: set[str] = set()
        while waiting:
            before = len(waiting)
            for shard in list(waiting):
                signals.check()
                again = stale.get(shard.name) is not None and stamp(store.path(shard)) == stale[shard.name]
                done = not again and store.has(shard)
                news = news_of(shard, store) if done else {}
                if done and not news and not store.partial(shard).exists():
                    say_kept(titles[shard.name], shard, store)
                    waiting.remove(shard)
                    continue
                with store.claim(shard) as ours:
                    if not ours:
                        if shard.name not in told:
                            say(f"{titles[shard.name]}: {store.holder(shard)} runs it; left to it")
                            told.add(shard.name)
                        continue
                    if again or (settings.retrain and begun_with_other_code(shard, store)):
                        store.set_aside(shard)
                    if store.has(shard):
                        say_kept(titles[shard.name], shard, store)
                        if news:
                            tell_reference(store.manifest(shard), news)
                            store.write_manifest(shard, {**store.manifest(shard), **news})
                    else:
                        say(f"{titles[shard.name]} x {quantity(shard.cell.steps)} steps")
                        run_shard(shard, store, settings, signals)
                        memory.release()
                    waiting.remove(shard)
            if len(waiting) == before:
                time.sleep(WAITING_SECONDS)
    say(f"{len(shards)} of {len(shards)} shards in {store.folder} after {duration(time.perf_counter() - began)}")


def stamp(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one that has taken its place; None without one."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def begun_with_other_code(shard: Shard, store: Store) -> bool:
    """Whether the shard is there, unfinished, and other code than that of now has worked on it."""
    unfinished = not store.path(shard).exists() and store.begun(shard)
    return unfinished and not provenance.same(shard, store.manifest(shard))


def extending(shards: Sequence[Shard], store: Store) -> list[Shard]:
    """The shards that together give the runs of these, each once, if some are finished in others of the same command.

    For each of `shards` those are the ones to keep, in the order of their seeds, and last one with the seeds that they
    lack, if any. They are of the same code and data. A shard itself is to run where nothing of the kind is there,
    where it has been begun or finished as a whole, and where the seeds that are left have gaps.
    """
    manifests = finished_manifests(store)
    return list({one.name: one for shard in shards for one in parts_of(shard, store, manifests)}.values())


def parts_of(shard: Shard, store: Store, manifests: dict[str, dict[str, Any]]) -> list[Shard]:
    """`extending` for one shard, given the manifests of the folder."""
    if store.path(shard).exists() or store.partial(shard).exists():
        return [shard]
    held: list[Shard] = []
    missing = set(range(shard.cell.first_seed, shard.cell.first_seed + shard.cell.seeds))
    for other in sorted(finished_alike(shard, store, manifests), key=lambda other: -other.cell.seeds):
        seeds = {seed for seed, _ in other.runs}
        if seeds & missing:
            held.append(other)
            missing -= seeds
    held.sort(key=lambda other: other.cell.first_seed)
    if not missing:
        return held
    first = min(missing)
    if not held or missing != set(range(first, first + len(missing))):
        return [shard]
    return [*held, at_seeds(shard, first, len(missing))]


def at_seeds(shard: Shard, first_seed: int, seeds: int) -> Shard:
    """The same at other seeds."""
    return sweep.shard(shard.experiment, dataclasses.replace(shard.cell, first_seed=first_seed, seeds=seeds))


def finished_manifests(store: Store) -> dict[str, dict[str, Any]]:
    """The manifests of a folder that can be read, by the name of the shard."""
    found = {}
    for path in sorted(store.folder.glob("[!.]*.json")):
        with contextlib.suppress(OSError, ValueError):
            found[path.stem] = json.loads(path.read_text())
    return found


def finished_alike(shard: Shard, store: Store, manifests: dict[str, dict[str, Any]]) -> Iterator[Shard]:
    """All finished shards that differ from this one in nothing but their seeds, trained with this code and data."""
    for name, found in manifests.items():
        try:
            seeds = sorted(set(found["seeds"]))
            alike = (found["label"], found["config_hash"]) == (shard.label, shard.config_hash)
        except (KeyError, TypeError):
            continue
        if not alike or seeds != list(range(seeds[0], seeds[0] + len(seeds))):
            continue
        other = at_seeds(shard, seeds[0], len(seeds))
        # The name holds a digest of all else that rows depend on.
        if other.name != name or not store.path(other).exists() or not provenance.same(other, found):
            continue
        if shard.cell.dataset is None or catalogue.fingerprint(shard.cell.dataset) == found.get("dataset_files"):
            yield other


def say_kept(title: str, shard: Shard, store: Store) -> None:
    """Say that a shard is finished. Raises UserError if it is of other code of the package that brings its parts."""
    line = provenance.check_kept(shard, store)
    say(f"{title}: done before, kept")
    if line:
        say(line)


class Job(NamedTuple):
    """A shard that this process has claimed, and all it takes to run it."""

    shard: Shard
    store: Store
    work: Work
    points: list[int]
    """update counts at which to evaluate"""
    settings: Settings
    signals: Signals


def run_shard(shard: Shard, store: Store, settings: Settings, signals: Signals) -> None:
    """Train all runs of one shard that this process has claimed, chunk after chunk, and merge their rows."""
    cell = shard.cell
    spec = algorithms.get(cell.algorithm)
    config = spec.fit(shard.config, cell.steps)
    algorithm = spec.make(config)
    if store.begun(shard):
        provenance.check_resumed(shard, store)
    if cell.dataset is not None:
        collect.ensure(cell.dataset, sweep.env_of(cell))
    task = sweep.task_of(cell)
    check_checksum(shard, store, task.dataset)
    total_updates = -(-cell.steps // algorithm.steps_per_update)
    work = Work(
        cell.algorithm, config, algorithm, task, shard.runs[0][1], len(shard.runs), total_updates, cell.eval_episodes
    )
    job = Job(shard, store, work, evaluation_points(total_updates, cell.evaluations), settings, signals)
    began = time.perf_counter()
    plan = begin(job)
    compile_seconds = time.perf_counter() - began
    say(f"  compiled in {duration(compile_seconds)}; {plan.describe(len(shard.runs))}")
    tell_devices(store.manifest(shard), plan.devices)
    facts = {**facts_of(job, plan), "compile_seconds": compile_seconds}
    tell_reference(store.manifest(shard), facts)

    finished = finished_parts(job)
    if finished:
        say(f"  {runs_in(finished)} of {len(shard.runs)} runs were done before, kept")
    plan = train_gaps(job, plan, facts, finished)
    # As they are on the disk now: who else may write there may have removed some.
    finished = finished_parts(job)
    if first_gap(finished, len(shard.runs)):
        say(
            f"  rows or policies of {len(shard.runs) - runs_in(finished)} runs were lost while the shard was running; "
            "they are trained again"
        )
        train_gaps(job, plan, facts, finished)
    store.finish(shard, job.points, settings.save_policies)


def train_gaps(job: Job, plan: Plan, facts: dict[str, Any], finished: list[Part]) -> Plan:
    """Train all runs that are not `finished`, the last part of each chunk that is; gives the plan at the end, which is
    narrower where the device refused the one given. The manifest is kept up to date, with these `facts`."""
    shard, store, work, _, _, signals = job
    diverged = sum(int(store.read(shard, part)["diverged"].to_numpy().sum()) for part in finished)
    seconds = sum(seconds_of(job, part) for part in finished)
    write_manifest(job, plan, facts, seconds, diverged)
    total_steps = work.total_updates * work.algorithm.steps_per_update
    progress = Progress(len(shard.runs), total_steps, runs_in(finished), diverged)
    with contextlib.closing(Snapshots(store.partial(shard) / "snapshot")) as snapshots:
        while gap := first_gap(finished, len(shard.runs)):
            first, stop = gap[0], min(gap[1], gap[0] + plan.lanes)
            signals.check()
            try:
                train_chunk(job, plan, first, stop, snapshots, progress)
                finished = sorted([*finished, Part(first, stop, job.points[-1])])
                seconds += seconds_of(job, Part(first, stop, job.points[-1]))
                write_manifest(job, plan, facts, seconds, progress.diverged)
                continue
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                if plan.width == 1:
                    raise UserError(
                        f"{shard.label} on {shard.environment}: the device has no memory for even one run "
                        f"({' '.join(str(error).split())[:120]}); make its buffer or networks smaller"
                    ) from error
            # Outside of the handler, which would keep the chunk's arrays alive.
            width = -(-plan.width // 2)
            say(f"  the device refused {plan.width} runs at once; going on with {width}")
            began = time.perf_counter()
            with live("  compiling ..."):
                compiled = planning.compile_for(work, width, plan.devices)
            facts["compile_seconds"] += time.perf_counter() - began
            plan = planning.plan_of(work, width, plan.devices, compiled, plan.rates)
            write_layout(job, plan)
    return plan


def news_of(shard: Shard, store: Store) -> dict[str, Any]:
    """What the manifest of a finished shard should say now and does not: no training depends on it.

    Raises:
        UserError: the shard has learned from other data than its dataset holds now.
    """
    cell, before = shard.cell, store.manifest(shard)
    if not before:  # it is lost, and cannot be made again from this
        return {}
    now = {"reference": reference_of(shard, None)} if cell.dataset is None or cell.reference is not None else {}
    if cell.dataset is not None:
        now |= look_at_dataset(shard, store, cell.dataset)
    return {name: value for name, value in now.items() if value != before.get(name)}


def look_at_dataset(shard: Shard, store: Store, dataset_id: str) -> dict[str, Any]:
    """What the manifest of a finished shard says of its dataset as it is now; nothing if that is not there any more.

    It is read only if its files have changed.
    """
    files = catalogue.fingerprint(dataset_id)
    if files is None:
        return {}
    if files == store.manifest(shard).get("dataset_files"):
        return {"reference": reference_of(shard, catalogue.reference(dataset_id))}
    try:
        dataset = catalogue.read(dataset_id, sweep.env_of(shard.cell), clip_actions=shard.cell.clip_actions)
    except UserError as error:
        say(f"  whether dataset '{dataset_id}' has changed since '{shard.name}' was trained cannot be told: {error}")
        return {}
    check_checksum(shard, store, dataset)
    return {"dataset_files": files, "reference": reference_of(shard, dataset.reference)}


def reference_of(shard: Shard, of_dataset: Reference | None) -> dict[str, Any] | None:
    """What normalised scores are measured between: the cell's own returns, else the dataset's or the environment's."""
    reference = shard.cell.reference or of_dataset or envs.info(shard.environment).reference
    return reference._asdict() if reference else None


def tell_reference(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say so if the facts of a manifest have another reference now. The first time that they have one is no change."""
    if "reference" not in before or "reference" not in now or before["reference"] == now["reference"]:
        return
    reference = now["reference"]
    text = "none" if reference is None else "{low:g} ({low_source}) to {high:g} ({high_source})".format(**reference)
    say(f"  its reference returns have changed, and its manifest with them: now {text}")


def check_checksum(shard: Shard, store: Store, dataset: Dataset | None) -> None:
    """Raise UserError if the shard was begun, and perhaps finished, with other data of the same name."""
    done = store.has(shard)
    if dataset is None or not (done or store.begun(shard)):
        return
    before = store.manifest(shard).get("dataset_checksum", dataset.checksum)
    if before != dataset.checksum:
        what, there = ("trained", store.path(shard)) if done else ("begun", store.partial(shard))
        raise UserError(
            f"dataset '{dataset.id}' has changed (checksum {dataset.checksum}, was {before}) since "
            f"'{shard.name}' was {what}; restore it, or delete '{there}' to begin again"
        )


def begin(job: Job) -> Plan:
    """The plan that the shard was begun with, else a new one, which it is begun with."""
    work, limits = job.work, job.settings.limits
    layout = job.store.layout(job.shard)
    if layout is None:
        with live("  compiling, and measuring how many runs at once are fastest ..."):
            plan = planning.choose(work, limits)
        write_layout(job, plan)
        return plan
    width, devices = layout["width"], layout["devices"]
    if limits.width not in (None, width):
        say(f"  goes on with {width} runs a device, as it was begun; --width {limits.width} is for shards begun later")
    there = planning.num_devices(devices, limits.devices)
    # Fewer devices than before: the same runs at once, on as many as divide them evenly.
    used = max(n for n in range(1, there + 1) if width * devices % n == 0)
    width = width * devices // used
    with live("  compiling ..."):
        return planning.plan_of(work, width, used, planning.compile_for(work, width, used), {})


def write_layout(job: Job, plan: Plan) -> None:
    """Have the shard go on with this plan, if it is interrupted."""
    job.store.write_layout(job.shard, {"width": plan.width, "devices": plan.devices})


def train_chunk(job: Job, plan: Plan, first: int, stop: int, snapshots: Snapshots, progress: Progress) -> None:
    """Train the runs first, ..., stop - 1 to the end, from their newest snapshot if there is one."""
    shard, store, work, points, settings, signals = job
    seeds, hypers = zip(*shard.runs[first:stop], strict=True)
    snapshot, damaged = snapshots.newest(plan.compiled.learning)
    for line in damaged:
        say(f"  {line}; taking the one before")
    resumed = None
    if snapshot and (snapshot.first, snapshot.stop) == (first, stop):
        written = {part.update for part in store.parts(shard) if (part.first, part.stop) == (first, stop)}
        if written.issuperset(point for point in points if point <= snapshot.training.update):
            resumed = snapshot.training
            say(f"  runs {first}-{stop - 1} go on from update {resumed.update} of {work.total_updates}")
    if resumed is None:
        store.forget(shard, first, stop)

    pauses = train(plan.compiled.programs, seeds, hypers, work.total_updates, points, resumed)
    del snapshot, resumed  # they hold a copy of the state, which `train` has now
    saved = time.perf_counter()
    for pause in pauses:
        if pause.evaluated:
            # A chunk is done once its last rows are there, so they come last.
            if settings.save_policies and pause.training.update == work.total_updates:
                save_policies(job, first, pause.training)
            store.write_rows(shard, first, pause.training.evaluation)
        progress.pause(first, stop - first, pause)
        if pause.training.update == work.total_updates:
            continue
        if signals.number is not None or time.perf_counter() - saved >= settings.save_every:
            snapshots.save(Snapshot(first, stop, pause.training))
            saved = time.perf_counter()
        if signals.number is not None:
            snapshots.wait()
            signals.check()


def save_policies(job: Job, first: int, training: Training) -> None:
    """Write what the runs from `first` have learned."""
    diverged = training.evaluation.diverged
    learned = policies.leaves(job.work.algorithm, job.work.task, job.work.hypers, training.learning.state)
    arrays = {name: np.asarray(leaf)[: len(diverged)] for name, leaf in learned.items()}
    job.store.write_policies(job.shard, first, training.update, diverged, arrays)


def tell_devices(before: dict[str, Any], devices: int) -> None:
    """Say so if the shard, by the manifest of the process that worked on it last, goes on with other devices."""
    sessions = before.get("sessions", [])
    # Earlier versions recorded the devices of the last process alone.
    last = sessions[-1].get("devices", before.get("plan", {}).get("devices")) if sessions else None
    if last not in (None, devices):
        say(
            f"  goes on with {devices} device(s), not {last} as before: so many runs on each round sums otherwise, and "
            "curves are not to the last bit those of one go; the manifest lists who trained on how many"
        )


def facts_of(job: Job, plan: Plan) -> dict[str, Any]:
    """What the manifest says of this process and its surroundings, and of those that worked on the shard before."""
    session = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": describe_device(),
        "git_revision": git_revision(),
    }
    code = provenance.session()
    return {
        "total_updates": job.work.total_updates,
        "steps_per_update": job.work.algorithm.steps_per_update,
        "evaluation_physics": evaluation_physics(job),
        **facts_of_dataset(job),
        "packages": provenance.packages(job.shard.cell.algorithm, job.shard.environment),
        "rlsuite_sources": provenance.own_sources(),
        "matmul_precision": str(jax.config.values["jax_default_matmul_precision"] or "default"),
        "versions": versions(),
        "command": sys.argv,
        **session,
        "sessions": [*sessions_of(job), {**session, **code, "devices": plan.devices}],
    }


def sessions_of(job: Job) -> list[dict[str, Any]]:
    """Those that have worked on the shard before, whose rows may still be there."""
    sessions: list[dict[str, Any]] = job.store.manifest(job.shard).get("sessions", [])
    return sessions if job.store.parts(job.shard) else []


def facts_of_dataset(job: Job) -> dict[str, Any]:
    """What an offline learner was given, and the returns that scores are measured between."""
    dataset = job.work.task.dataset
    if dataset is None:
        return {"reference": reference_of(job.shard, None)}
    return {
        "dataset_checksum": dataset.checksum,
        "dataset_files": catalogue.fingerprint(dataset.id),
        "dataset_size": dataset.size,
        "dataset_source": dataset.source,
        "reference": reference_of(job.shard, dataset.reference),
    }


def evaluation_physics(job: Job) -> str:
    """The simulator that gave the scores."""
    env = job.work.task.env
    return env.backend if isinstance(env, WithC) else envs.info(job.shard.environment).backend


def write_manifest(job: Job, plan: Plan, facts: dict[str, Any], run_seconds: float, diverged: int) -> None:
    """Replace the shard's manifest by what is known now."""
    known = {
        "run_seconds": run_seconds,
        "peak_memory_bytes": memory.peak_bytes(),
        "plan": {"width": plan.width, "devices": plan.devices, "peak_memory_bytes": plan.peak_memory},
        "diverged": diverged,
    }
    job.store.write_manifest(job.shard, {**facts, **known})


def finished_parts(job: Job) -> list[Part]:
    """The last part of each chunk all of whose evaluations are there, and policies if they are saved, in the order of
    their runs."""
    found: dict[tuple[int, int], set[int]] = {}
    for part in job.store.parts(job.shard):
        found.setdefault((part.first, part.stop), set()).add(part.update)
    last = job.points[-1]
    whole = sorted(Part(*runs, last) for runs, updates in found.items() if updates.issuperset(job.points))
    if not job.settings.save_policies:
        return whole
    learned = job.store.learned(job.shard)
    return [part for part in whole if (part.first, part.stop) in learned]


def runs_in(parts: Sequence[Part]) -> int:
    """How many runs these parts of different runs have."""
    return sum(part.stop - part.first for part in parts)


def seconds_of(job: Job, part: Part) -> float:
    """How long the chunk of this part had trained when it was evaluated."""
    return float(job.store.read(job.shard, part)["wall_seconds"][0].as_py())


def first_gap(finished: Sequence[Part], num_runs: int) -> tuple[int, int] | None:
    """The first range of runs that are not finished; None if all are. `finished` is in the order of the runs."""
    first = 0
    for part in finished:
        if part.first > first:
            return first, part.first
        first = part.stop
    return (first, num_runs) if first < num_runs else None


def versions() -> dict[str, str]:
    """Python's and the packages' versions, those that are installed."""
    found: dict[str, str] = {"python": sys.version.split()[0], "rlsuite": rlsuite.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """The commit this code is at, with a + if the tree has changes; None outside a checkout."""
    here = Path(__file__).parent

    def git(*args: str) -> Any:
        return subprocess.run(("git", "-C", here, *args), capture_output=True, text=True, check=False)

    try:
        revision = git("rev-parse", "--short=12", "HEAD")
        if revision.returncode:
            return None
        return revision.stdout.strip() + ("+" if git("status", "--porcelain").stdout.strip() else "")
    except OSError:
        return None
