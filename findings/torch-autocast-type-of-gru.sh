#!/usr/bin/env bash
# torch 2.13.0: under one autocast region nn.RNN and nn.LSTM return bfloat16, nn.GRU float32.
#
# Same input in float32, `torch.autocast("cpu", torch.bfloat16)`. The GRU does multiply in bfloat16 (its error is bfloat16's) and
# returns float32 all the same; with an input in bfloat16 it returns bfloat16. Who exchanges one for the other changes the type of
# what comes out, and with it what the next layers' memory and comparisons are.
#
# Seen: RNN torch.bfloat16 torch.bfloat16
#       GRU torch.float32 torch.bfloat16
#       LSTM torch.bfloat16 torch.bfloat16
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy
said=$("$folder/venv/bin/python" - <<'PY'
import torch

x = torch.randn(5, 2, 3)
for kind in (torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM):
    layer = kind(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        print(kind.__name__, *(layer(v)[0].dtype for v in (x, x.bfloat16())))
PY
)
echo "$said"
[[ $said = $'RNN torch.bfloat16 torch.bfloat16\nGRU torch.float32 torch.bfloat16\nLSTM torch.bfloat16 torch.bfloat16' ]]
