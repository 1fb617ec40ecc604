#!/usr/bin/env bash
# What a GPU has to show, in one command, under 8 minutes, without a network and without installing anything.
#
#   bash bench/gpu_check.sh              builds the package into a temporary folder; tests; measures; compute-sanitizer
#   bash bench/gpu_check.sh --dry-run    the same without a GPU: tests are skipped, measurements are tiny
#
# Needs python3 (or PYTHON=...) with torch, triton, numpy, pillow, safetensors, tqdm, setuptools and pytest; energy needs
# nvidia-ml-py. Rows and the log go to $OUT, or bench/results. COMMIT=... names the commit of a tree without .git.
# A part that fails or takes too long does not stop the others; the exit code says whether any did.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(command -v "${PYTHON:-python3}") || { echo "gpu_check: no ${PYTHON:-python3}; set PYTHON" >&2; exit 1; }
dry=
[ "${1:-}" = --dry-run ] && dry=--dry-run
limit=465 # seconds in all

if [ -z "$dry" ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu_check needs a CUDA device, and torch in $python sees none; --dry-run tries the script without" >&2
    exit 1
fi

commit=${COMMIT:-$(git --no-optional-locks describe --always --dirty --abbrev=12 --exclude '*' 2>/dev/null)}
out=${OUT:-bench/results}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
log=$out/gpu_check.txt
: >"$log"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE
# Two tests turn deterministic algorithms on: cuBLAS then warns without this, and warnings are errors.
export CUBLAS_WORKSPACE_CONFIG=:4096:8
export TRITON_CACHE_DIR=$site/.triton TORCHINDUCTOR_CACHE_DIR=$site/.inductor
if [ -n "$dry" ]; then export TRITON_INTERPRET=1; else unset TRITON_INTERPRET; fi

verdicts=()
failed=0
say() { echo "$@" | tee -a "$log"; }
part() { # part NAME SECONDS COMMAND...: runs it, keeps its output, notes how it ended
    local name=$1 seconds=$2 began=$SECONDS status
    shift 2
    say "==== $name (at most $seconds s)"
    timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee -a "$log"
    status=${PIPESTATUS[0]}
    ended=$status
    case $status in
        0) verdicts+=("ok      $name, $((SECONDS - began)) s") ;;
        124 | 137) verdicts+=("TIMEOUT $name, after $seconds s") && failed=1 ;;
        *) verdicts+=("FAILED  $name, exit code $status, $((SECONDS - began)) s") && failed=1 ;;
    esac
}

# kernels/ has to become fastcloak.kernels, which importing from the repository does not do.
"$python" setup.py -q egg_info -e "$site" build_py -d "$site" >>"$log" 2>&1 || {
    say "setup.py build_py failed, copying instead"
    cp -R fastcloak "$site/" && cp -R kernels "$site/fastcloak/kernels"
}
cp -R tests bench pyproject.toml "$site/" && cd "$site" || exit 1
export PYTHONPATH=$site
"$python" -c 'import fastcloak.kernels, sys; sys.exit(not fastcloak.kernels.__file__.startswith(sys.argv[1]))' "$site" || {
    say "the build in $site cannot be imported"
    exit 1
}

tests=(tests/test_gpu.py)
if [ -n "$dry" ]; then tests+=(--collect-only -q); else tests+=(tests/test_kernels.py); fi
workers=()
[ -z "$dry" ] && "$python" -c 'import xdist' 2>/dev/null && workers=(-n 6)
part "tests" 180 "$python" -m pytest -ra --durations=10 -p no:cacheprovider "${workers[@]}" "${tests[@]}"
if [ -n "$dry" ] && [ "$ended" = 0 ]; then # found, and not run: CI runs them on the CPU
    verdicts=("skipped tests: no CUDA device") && failed=0
fi

part "tailoring" 45 "$python" -m bench.speed.tailoring --models mobilefacenet --photos 1 32 256 \
    -o "$out/gpu_tailoring.csv" $dry
measure=$((limit - SECONDS - 75))
[ $measure -gt 240 ] && measure=240
part "measurements" $((measure + 35)) "$python" -m bench.speed.gpu -o "$out" --seconds $measure --commit "$commit" $dry

sanitize() { # sanitize TOOL SECONDS
    local before=${#verdicts[@]} was=$failed
    # Without PyTorch's cache every tensor is an allocation of its own, and its end is known.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 part "compute-sanitizer $1" "$2" compute-sanitizer --tool "$1" --error-exitcode 77 \
        "$python" -m pytest -x -p no:cacheprovider tests/test_kernels.py \
        -k "launches_per_operation or each_person_has_their_own_hull"
    if tail -n 200 "$log" | grep -q "Device not supported"; then
        verdicts[before]="skipped compute-sanitizer $1: it does not support this device" && failed=$was
        return 1
    fi
    case $ended in 124 | 137) verdicts[before]="skipped compute-sanitizer $1: not finished in $2 s" && failed=$was ;; esac
}
if [ -n "$dry" ] || ! command -v compute-sanitizer >/dev/null; then
    verdicts+=("skipped compute-sanitizer: not here")
else
    for tool in memcheck racecheck; do
        left=$((limit - SECONDS))
        if [ $left -lt 25 ]; then
            verdicts+=("skipped compute-sanitizer $tool: $left s left")
        else
            sanitize $tool $((left < 90 ? left : 90)) || break
        fi
    done
fi

say
"$python" -m bench.speed.gpu --table -o "$out" | tee -a "$log"
say
for verdict in "${verdicts[@]}"; do say "$verdict"; done
say "$SECONDS s in all; rows and log in $out"
exit $failed
