"""Converts the networks of `bench_inference` to ONNX graphs and runs them in onnxruntime.

A step is traced: it runs on symbolic arrays, and every operation on them adds a node to the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.networks import Product, Weights


class _Graph:
    """An ONNX graph under construction: its nodes, and the constants that they use."""

    def __init__(self, helper: Any):
        self.helper = helper
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, kind: str, *inputs: Any, n: int = 1, **attributes: Any) -> list[_Symbol]:
        first = len(self.nodes)
        out = [f"{kind}_{first}_{i}" for i in range(n)]
        names = [self.name_of(x) for x in inputs]
        self.nodes.append(self.helper.make_node(kind, names, out, **attributes))
        return [_Symbol(self, name) for name in out]

    def name_of(self, x: Any) -> str:
        if isinstance(x, _Symbol):
            return x.name
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(x, np.float32)
        return name


class _Symbol:
    """A symbolic array: the name of a value in a graph."""

    def __init__(self, graph: _Graph, name: str):
        self.graph, self.name = graph, name

    def __add__(self, other: Any) -> _Symbol:
        return self.graph.add("Add", self, other)[0]

    def __mul__(self, other: Any) -> _Symbol:
        return self.graph.add("Mul", self, other)[0]

    __radd__, __rmul__ = __add__, __mul__


class _SymbolicNumpy:
    """The NumPy functions that the networks use; each adds a node to the graph."""

    def __init__(self, graph: _Graph):
        self.tanh = lambda x: graph.add("Tanh", x)[0]
        self.concatenate = lambda xs, axis: graph.add("Concat", *xs, axis=axis)[0]
        self.split = lambda x, n, axis: graph.add("Split", x, n=n, axis=axis, num_outputs=n)
        self.maximum = lambda x, low: graph.add("Max", x, low)[0]


def onnx_runs(
    step: Callable[[Any, Product, Any, Any], Any],
    weights: Weights,
    widths: list[int],
    threads: int,
) -> Callable[[list[np.ndarray]], Callable[[], Any]]:
    """Builds a step in onnxruntime, for inputs of these widths and any batch size.

    Raises:
      ImportError: `onnx` or `onnxruntime` is missing.
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    graph = _Graph(helper)
    names = [_Symbol(graph, f"x{i}") for i in range(len(widths))]
    kernels = {name: _Symbol(graph, name) for name in weights}
    out = step(_SymbolicNumpy(graph), lambda w, x: graph.add("MatMul", x, w)[0], kernels, names)
    value = helper.make_tensor_value_info
    inputs = [
        value(name.name, TensorProto.FLOAT, ["batch", width])
        for name, width in zip(names, widths, strict=True)
    ]
    stored = {**weights, **graph.constants}
    tensors = [numpy_helper.from_array(np.ascontiguousarray(w), n) for n, w in stored.items()]
    output = value(out.name, TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(graph.nodes, "step", inputs, [output], tensors),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def with_inputs(inputs: list[np.ndarray]) -> Callable[[], Any]:
        feed = {name.name: x for name, x in zip(names, inputs, strict=True)}
        return lambda: session.run(None, feed)[0]

    return with_inputs
