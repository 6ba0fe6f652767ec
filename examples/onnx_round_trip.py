"""ONNX Runtime: a layer goes out as one node, and weights of an ONNX file come in."""

import io

import numpy as np
import onnx
import onnxruntime
import torch

import bptt
import gain

ORDER = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}  # ours of ONNX's gates: iofc, zrh


class Output(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


def exported(layer):
    """A layer of one direction as a file of ONNX, with any number of steps and sequences."""
    file, example = io.BytesIO(), torch.zeros(4, 3, layer.input_size)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        Output(layer).eval(), (example,), file, dynamo=True, dynamic_shapes=(axes,), verbose=False
    )
    return file.getvalue()


def imported(content):
    """The first recurrent node of a file, of one direction with the default options, as a layer."""
    model = onnx.load_from_string(content)
    node = next(node for node in model.graph.node if node.op_type in ORDER)
    # Its weights may be made of others by nodes before it: they are asked for as outputs.
    names = list(node.input[1:4])
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    nothing = np.zeros((1, 1, given.shape[2]), np.float32)
    w, r, b = (value[0] for value in session.run(names, {given.name: nothing}))
    order, hidden = ORDER[node.op_type], r.shape[1]
    layer = getattr(bptt, node.op_type)(w.shape[1], hidden)
    for name, value in zip(layer.state_dict(), (w, r, *np.split(b, 2)), strict=True):
        gates = torch.from_numpy(value.copy()).unflatten(0, (len(order), hidden))
        layer.get_parameter(name).data = gates[order].flatten(0, 1)
    return layer


def pair(steps=100, batch=16, hidden=256):
    """onnxruntime with the file, and the layer that comes of it again."""
    content = exported(bptt.LSTM(32, hidden))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # let the other one run
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    layer, x = imported(content), torch.randn(steps, batch, 32)
    name = session.get_inputs()[0].name

    def before():
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    def after():
        with torch.no_grad():
            return layer(x)[0]

    return before, after


if __name__ == "__main__":
    gain.show(pair())
