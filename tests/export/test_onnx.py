"""What needs no ONNX package: the sentence that says so. The rest is in tests/peers/test_export_onnx.py."""

import sys

import pytest

import tidegate
from tests.helpers import runs
from tidegate.cli import main
from tidegate.errors import PackageMissingError
from tidegate.export.onnx import write_layer


def test_without_the_package_onnx_a_sentence_says_how_to_get_it_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    path = tmp_path / "model.onnx"
    with pytest.raises(PackageMissingError, match=r"pip install 'tidegate\[onnx\]'"):
        runs.run_of("class").export("onnx", path)
    with pytest.raises(ImportError, match=r"pip install 'tidegate\[onnx\]'"):
        write_layer(tidegate.GRU(3, 4), path)
    assert main(["export", str(runs.folder_of("class")), "--to", "onnx", "--out", str(path)]) == 1
    said = capsys.readouterr().err
    assert said == "Error: Writing ONNX files needs onnx, which is not installed: pip install 'tidegate[onnx]'\n"
    assert list(tmp_path.iterdir()) == []
