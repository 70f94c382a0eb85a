#!/usr/bin/env bash
# What only a GPU can show: builds, tests, sanitizers, benchmark, one summary; exits non-zero when a step failed.
# Uses the current Python as it is: makes no environment, fetches nothing. Stays under 10 minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
summary=() failed=0

# step NAME SECONDS COMMAND...: runs the command, at most that long, and notes how it went.
step() {
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  printf '\n== %s: %s\n' "$name" "$*"
  if timeout "$limit" "$@"; then
    status=passed
  else
    status="FAILED ($?)"
    failed=1
  fi
  summary+=("$(printf '%-22s %-12s %4d s' "$name" "$status" $((SECONDS - start)))")
}

finish() {
  printf '\n== summary: %s\n' "$gpu"
  printf '%s\n' "${summary[@]}"
  exit "$failed"
}

# Prints the GPU's name and the architecture to build for; 9.0a holds the instructions that Hopper alone has.
describe='
import sys, torch
if not torch.cuda.is_available():
    sys.exit(f"No GPU is visible to PyTorch {torch.__version__}.")
arch = "%d.%d" % torch.cuda.get_device_capability()
print(torch.cuda.get_device_name(), "with PyTorch", torch.__version__, sep=" ", end=";")
print("9.0a" if arch == "9.0" else arch)'
described=$("$python" -c "$describe") || exit 1
gpu=${described%;*}
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-${described##*;}}

step build 200 env FORCE_CUDA=1 NVCC_APPEND_FLAGS=-lineinfo "$python" setup.py build_ext --inplace
step kernels 20 "$python" -c "from pointwise_ext.info import why_no_cuda; raise SystemExit(why_no_cuda())"
((failed)) && finish # every test would be skipped
step tests 90 "$python" -m pytest -q -n "${WORKERS:-8}" tests/gpu
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    # Only our kernels, all in namespace pw; uncached memory, so that each tensor has bounds of its own.
    step "$tool" 40 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      --report-api-errors no --kernel-name kernel_substring=pw "$python" -m pytest -q -m sanitizer -p no:cacheprovider tests/gpu
  done
else
  summary+=("compute-sanitizer      not on PATH: skipped")
fi
step bench 110 "$python" -m bench --device cuda --quick --cold
step peers 45 "$python" -m bench.kernels --to bench/results/kernels.csv
step plans 55 "$python" -m bench.plans --dtype bf16 --batch 32 --limit 35 --to bench/results/plans.csv
finish
