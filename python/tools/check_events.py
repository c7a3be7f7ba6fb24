#!/usr/bin/env python3
"""Holds a run's TensorBoard files against its metrics.jsonl, reading them with TensorBoard's own reader.

    python3 -m venv /tmp/tb && /tmp/tb/bin/pip install tensorboard
    /tmp/tb/bin/python python/tools/check_events.py runs/NAME

With --golden it prints the bytes, in hex, of the events that run_log_test.cc compares with its own.
"""

import json
import math
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2, summary_pb2


def golden():
    step = event_pb2.Event(wall_time=1234.5, step=300)
    step.summary.value.add(tag="reward/mean", simple_value=0.25)
    step.summary.value.add(tag="lr", simple_value=1e-6)
    step.summary.value.add(
        tag="importance_weight/histogram",
        histo=summary_pb2.HistogramProto(min=0.5, max=2, num=4, sum=5, sum_squares=6.75,
                                         bucket_limit=[1, 1.5, 2], bucket=[1, 2, 1]))
    print("version", event_pb2.Event(wall_time=1234.5, file_version="brain.Event:2").SerializeToString().hex())
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    print("start", event_pb2.Event(wall_time=1234.5, step=300, session_log=start).SerializeToString().hex())
    print("step", step.SerializeToString().hex())


def as_float32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def check(run):
    events = EventAccumulator(run, size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    expected = {}
    histograms = {}
    with open(f"{run}/metrics.jsonl", encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            step = line.pop("step")
            line.pop("wall_s", None)
            for key, value in line.items():
                if key == "importance_weight/histogram":
                    histograms[step] = value
                elif value is not None:
                    expected.setdefault(key, {})[step] = as_float32(value)
    tags = events.Tags()
    assert set(tags["scalars"]) == set(expected), set(tags["scalars"]) ^ set(expected)
    for key, values in expected.items():
        assert {s.step: s.value for s in events.Scalars(key)} == values, key
    if histograms:
        read = {h.step: h.histogram_value for h in events.Histograms("importance_weight/histogram")}
        assert read.keys() == histograms.keys()
        for step, histogram in histograms.items():
            assert list(read[step].bucket) == histogram["counts"], step
            assert all(map(math.isclose, read[step].bucket_limit, histogram["edges"][1:])), step
    print(f"{run}: {len(expected)} scalars, {sum(map(len, expected.values()))} values, {len(histograms)} histograms agree")


if __name__ == "__main__":
    golden() if sys.argv[1:] == ["--golden"] else check(sys.argv[1])
