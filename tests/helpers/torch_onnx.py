"""`torch.onnx.export` of a model, and ONNX Runtime beside it."""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import onnx
import onnxruntime
import torch

CLOSE = 1e-6


def session_of(model, given, dynamo, axes, operators=False):
    """model: or an ExportedProgram, whose axes are open or not. axes: for each input the names of its open axes, {axis: name}. With `operators` also the types of the nodes and their domains."""
    names = [f"input_{k}" for k in range(len(axes))]
    file = io.BytesIO()
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(model, torch.export.ExportedProgram):
                torch.onnx.export(model, dynamo=True, input_names=names, verbose=False).save(file)
            elif dynamo:
                shapes = tuple({axis: torch.export.Dim(name) for axis, name in each.items()} for each in axes)
                program = torch.onnx.export(
                    model.eval(), given, dynamo=True, input_names=names, dynamic_shapes=shapes, verbose=False
                )
                program.save(file)
            else:
                torch.onnx.export(
                    model.eval(),
                    given,
                    file,
                    dynamo=False,
                    input_names=names,
                    dynamic_axes=dict(zip(names, axes, strict=True)),
                )
    finally:
        logging.disable(logging.NOTSET)
    session = onnxruntime.InferenceSession(file.getvalue())
    if not operators:
        return session
    return session, {node.op_type: node.domain for node in onnx.load_from_string(file.getvalue()).graph.node}


def check(model, session, *given):
    with torch.no_grad():
        expected = model(*given)
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = session.run(None, {i.name: v.numpy() for i, v in zip(session.get_inputs(), given, strict=True)})
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a.numpy(), rtol=0, atol=CLOSE)
