"""TensorBoard: a file of events for each series, in a folder `<label>/<task>/<name>`, which a run of TensorBoard is.

A file is as long as the state says, or longer where an export was killed: the rest is cut off and written again.
Numbers are float32, as TensorBoard keeps all scalars.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import BinaryIO

from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.plugins.custom_scalar import layout_pb2, metadata  # type: ignore[import-untyped]
from tensorboard.plugins.hparams import summary_v2 as hparams  # type: ignore[import-untyped]
from tensorboard.plugins.text.summary_v2 import text_pb  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from tensorboard.util.tensor_util import make_tensor_proto  # type: ignore[import-untyped]

from analysis.export import HIGH, IQM, LOW, Record, Series

FILE = "events.out.tfevents.rlsuite"
"""TensorBoard reads every file with `tfevents` in its name."""


class TensorBoard:
    """A `Target` that is a folder, which `tensorboard --logdir` takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "rlsuite-export.json"

    def holds(self, record: Record) -> bool:
        file = self.folder / record["file"]
        return file.exists() and file.stat().st_size >= record["bytes"]

    def send(self, part: Series, record: Record, doubtful: bool) -> Record:
        path = self.folder / record.get("file", _place(part) / FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(record.get("bytes", 0))
            events = _Events(file)
            time = float(part.times[0]) if part.times.size else record["time"]
            if not record:
                events.begin(part, time)
            for step, now, values in part.rows():
                events.add(Summary(value=[Summary.Value(tag=n, simple_value=v) for n, v in values.items()]), step, now)
            if part.facts["finished"]:
                events.add(text_pb("facts", _as_text(dict(part.facts))), 0, time)
            file.flush()
            size = file.tell()
        return {"file": str(path.relative_to(self.folder)), "bytes": size}

    def close(self) -> None:
        pass


class _Events:
    """A file of events that is open for appending."""

    def __init__(self, file: BinaryIO) -> None:
        self.records = RecordWriter(file)

    def add(self, summary: Summary, step: int, time: float) -> None:
        self.records.write(Event(wall_time=time, step=step, summary=summary).SerializeToString())

    def begin(self, series: Series, time: float) -> None:
        """What a file begins with: version, hyperparameters, manifest, and of an aggregate how to draw its band."""
        self.records.write(Event(wall_time=time, file_version="brain.Event:2").SerializeToString())
        self.add(hparams.hparams_pb(dict(series.settings), start_time_secs=time), 0, time)
        self.add(text_pb("manifest", _as_text(series.manifest)), 0, time)
        if series.kind == "aggregate":
            self.add(_layout(), 0, time)


def _layout() -> Summary:
    """A chart of the IQM with its interval as a band, for the page Custom Scalars; of all aggregates in one, since
    TensorBoard puts equal charts together. Its own function for this needs TensorFlow."""
    band = layout_pb2.MarginChartContent.Series(value=IQM, lower=LOW, upper=HIGH)
    chart = layout_pb2.Chart(title=IQM, margin=layout_pb2.MarginChartContent(series=[band]))
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title="IQM with 95 % intervals", chart=[chart])])
    value = Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        metadata=metadata.create_summary_metadata(),
        tensor=make_tensor_proto(layout.SerializeToString()),
    )
    return Summary(value=[value])


def _place(series: Series) -> Path:
    """`ppo/gymnax/CartPole-v1/seed 3-0123abcd`: a run of TensorBoard, told from others with that seed by its key."""
    parts = [*series.label.split("/"), *series.task.split("/"), f"{series.name}-{series.key[:8]}"]
    return Path(*(re.sub(r"[^\w .,+=()-]+", "-", part).strip(" .") or "-" for part in parts))


def _as_text(facts: dict[str, object]) -> str:
    # Four spaces make Markdown, which TensorBoard reads, show it as it is.
    return os.linesep.join(f"    {line}" for line in json.dumps(facts, indent=1).splitlines())
