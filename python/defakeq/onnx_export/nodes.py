"""The nodes of a program as ONNX operators; one method ``_op_<kind>`` a kind."""

from __future__ import annotations

from defakeq.onnx_export.elementwise import Elementwise
from defakeq.onnx_export.images import Images
from defakeq.onnx_export.layers import Layers
from defakeq.onnx_export.rows import Rows
from defakeq.onnx_export.values import Node


class Exporter(Layers, Elementwise, Rows, Images):
    """Writes the nodes of one program into a graph, in order."""

    def run(self, node: Node) -> None:
        """Exports one node.

        Raises:
            ValueError: a node that has no ONNX form, by name.
        """
        kind, name = node.get("op"), node.get("name", "")
        method = getattr(self, f"_op_{kind}", None)
        try:
            if method is None:
                raise ValueError(f"op: found {kind!r}; accepted is a kind that ONNX can express")
            method(node, [int(v) for v in node["in"]], int(node["out"][0]))
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(f"node {name!r} ({kind}) cannot be exported: {error}") from error
