#!/usr/bin/env bash
# polars 2.1.0: what a Series computes depends on its name.
#
# Methods such as `is_nan` select the Series by its name in a frame of one column, and a name from ^ to $ is taken for a pattern
# there. Where the pattern does not match its own text ("^x$" matches x alone), nothing is selected: IndexError. `cast` and `max`
# go another way and are right.
#
# Seen: x [False, True] [1.0, nan]
#       ^x$ IndexError [1.0, nan]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet polars==2.1.0
said=$("$folder/venv/bin/python" - <<'PY'
import polars as pl

for name in ("x", "^x$"):
    column = pl.Series(name, [1.0, float("nan")])
    try:
        found = column.is_nan().to_list()
    except IndexError as error:
        found = type(error).__name__
    print(name, found, column.cast(pl.Float32).to_list())
PY
)
echo "$said"
[[ $said = $'x [False, True] [1.0, nan]\n^x$ IndexError [1.0, nan]' ]]
