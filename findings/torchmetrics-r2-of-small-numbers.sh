#!/usr/bin/env bash
# torchmetrics 1.9.0: R² depends on the unit of the target.
#
# `r2_score` takes a total or residual sum of squares below 1e-4 for zero. With a target in small units (metres in place of
# millimetres, a rate a second) it gives 1, a perfect fit, whatever was predicted; scikit-learn gives -3 in either unit.
#
# Seen: torchmetrics millimetres -3.0 metres 1.0
#       scikit-learn millimetres -3.0 metres -3.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 torchmetrics==1.9.0 scikit-learn==1.7.2 numpy
said=$("$folder/venv/bin/python" - <<'PY'
import torch
from sklearn.metrics import r2_score as sklearn_r2
from torchmetrics.functional import r2_score

truth = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)  # millimetres
predicted = truth.flip(0)
for name, r2 in (("torchmetrics", lambda p, t: r2_score(p, t)), ("scikit-learn", lambda p, t: sklearn_r2(t, p))):
    print(name, *(f"{unit} {float(r2(predicted * k, truth * k)):.1f}" for unit, k in (("millimetres", 1), ("metres", 1e-3))))
PY
)
echo "$said"
[[ $said = $'torchmetrics millimetres -3.0 metres 1.0\nscikit-learn millimetres -3.0 metres -3.0' ]]
