"""onnxruntime: predictions of the net that gradstack exports."""

from __future__ import annotations

import pathlib
import tempfile

import onnxruntime

import gradstack as gs
from bench.peers import Call, UnsupportedError
from bench.peers.gradstack_ import build
from bench.workloads import Task

TRAINERS: list[type] = []


def forward(task: Task) -> dict[str, Call]:
    """From an array to an array, in a session with the task's threads."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "net.onnx"
        try:
            gs.export_onnx(build(task), path)
        except ImportError as reason:
            raise UnsupportedError(str(reason)) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = task.threads
        session = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    feed = {session.get_inputs()[0].name: task.x}
    return {"onnxruntime": Call("run(None, feed)[0]", {"run": session.run, "feed": feed})}
