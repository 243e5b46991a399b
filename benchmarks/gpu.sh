#!/usr/bin/env bash
# Checks and times everything that runs on a GPU, in one call of less than nine minutes.
#
#     bash benchmarks/gpu.sh [FOLDER]          (default runs/gpu)
#
# Not yet run on a GPU. Takes the first Python that has torch with a GPU and the needs of this
# package: $PYTHON, .venv, python3.11 to python3.13, python3. Where there is none it makes
# .venv-gpu, which needs a network. Every part has its own time limit and stands in its own file of
# FOLDER; a part that fails does not stop the next. The exit code is that of the worst part.
# LIMIT (s, default 530) is for all together. DEVICE=cpu shows, slowly, that the script works.
set -u
cd "$(dirname "$0")/.." || exit 1
OUT=${1:-runs/gpu}
LIMIT=${LIMIT:-530}
DEVICE=${DEVICE:-cuda}
mkdir -p "$OUT"
rm -f "$OUT"/*.json "$OUT"/*.txt
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
WORST=0

usable() {
    command -v "$1" >/dev/null && "$1" - "$DEVICE" >/dev/null 2>&1 <<'PYTHON_CODE'
import sys
import torch
import lidarssl.backbones.minkunet, lidarssl.backbones.waffleiron
sys.exit(sys.argv[1] == "cuda" and not torch.cuda.is_available())
PYTHON_CODE
}

find_python() {
    for PY in "${PYTHON:-.venv/bin/python}" .venv/bin/python .venv-gpu/bin/python \
        python3.11 python3.12 python3.13 python3; do
        usable "$PY" && return 0
    done
    return 1
}

# part NAME SECONDS COMMAND...: its output to NAME.txt, and its last lines to the terminal.
part() {
    local name=$1 seconds=$2 left=$((LIMIT - SECONDS)) code start=$SECONDS
    shift 2
    [ "$left" -lt "$seconds" ] && seconds=$left
    if [ "$seconds" -lt 5 ]; then
        echo "== $name: no time left"
        WORST=1
        return
    fi
    timeout --kill-after=5 "$seconds" "$@" >"$OUT/$name.txt" 2>&1
    code=$?
    [ "$code" -gt "$WORST" ] && WORST=$code
    echo "== $name: exit code $code, $((SECONDS - start)) s of $seconds"
    tail -n 30 "$OUT/$name.txt"
}

if ! find_python; then
    echo "== no Python here has torch with a GPU and what this package needs: making .venv-gpu"
    part build 180 bash -c '"$0" -m venv --system-site-packages .venv-gpu &&
        .venv-gpu/bin/python -m pip install --quiet --editable . pytest hypothesis' \
        "$(command -v "${PYTHON:-python3.11}" || echo python3)"
    find_python || { echo "== that did not help: see $OUT/build.txt"; exit 1; }
fi
echo "== $("$PY" -c 'import sys, torch
name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print("python", sys.version.split()[0], "torch", torch.__version__, name)')"

SMALL=()
[ "$DEVICE" = cpu ] && SMALL=(--backends torch --sweeps 1 --repeats 1 --precisions float32)

# The network first among the figures: it is what the targets speak of.
part tests_gpu 100 "$PY" -m pytest tests/gpu -q -x -p no:cacheprovider
part tests_sparse 90 "$PY" -m pytest tests/sparse -q -x -p no:cacheprovider
part network 190 "$PY" benchmarks/gpu_sparse.py network --seconds 150 --device "$DEVICE" \
    --json "$OUT/network.json" "${SMALL[@]}"
part waffleiron 60 "$PY" benchmarks/waffleiron.py --device "$DEVICE" --repeats 3 \
    --json "$OUT/waffleiron.json"
part layers 90 "$PY" benchmarks/gpu_sparse.py layers --sweeps 8 --seconds 60 --device "$DEVICE" \
    --json "$OUT/layers.json" "${SMALL[@]}"
"$PY" - "$OUT" <<'PYTHON_CODE'
import json, pathlib, sys
sys.path.insert(0, "benchmarks")
from measuring import Figure, table

folder, kept = pathlib.Path(sys.argv[1]), []
for name in ("network", "layers", "waffleiron"):
    if (folder / f"{name}.json").is_file():
        for one in json.loads((folder / f"{name}.json").read_text())["figures"]:
            del one["reached"]
            kept.append(Figure(**one))
lines = table(kept)
print(*lines, sep="\n")
(folder / "table.txt").write_text("\n".join(lines) + "\n")
(folder / "table.json").write_text(json.dumps([vars(one) for one in kept], indent=1) + "\n")
PYTHON_CODE
echo "== $SECONDS s in all, files in $OUT, exit code $WORST"
exit "$WORST"
