"""A run, or a bare layer, as an ONNX file: from the raw columns of a table to predictions in words.

The recurrence is ONNX's own operator, `GRU`, as far as it reaches; layer norm, zoneout and float64, which it has not,
become a `Scan` of elementary operators. Operators: https://onnx.ai/onnx/operators/ (GRU, Scan, LayerNormalization) and
https://onnx.ai/onnx/operators/onnx_aionnxml_LabelEncoder.html for the vocabularies.

| file | what it does |
| --- | --- |
| `run.py` | `write`: a run, with what is around its recurrence |
| `layer.py` | `write_layer`: a bare layer; needs torch, numpy and onnx alone |
| `program.py` | `decompositions`: for a `torch.export.ExportedProgram`; needs torch alone |
| `recurrence.py` | the layers, for both |
| `graph.py` | an ONNX graph as it is put together |
| `runtime.py` | ONNX Runtime, to look at the file before it is written |
"""

from tidegate.export.onnx.layer import write_layer
from tidegate.export.onnx.program import decompositions
from tidegate.export.onnx.run import write

__all__ = ["decompositions", "write", "write_layer"]
