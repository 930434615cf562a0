#!/usr/bin/env bash
# Run what has never run on a GPU, in at most eight minutes.
#   bash benchmarks/gpu.sh [SHAPE]      EEVE-10.8B by default (24 GB for training)
# Each part has a time limit in seconds; a failure does not stop the next part.
set -u
cd "$(dirname "$0")/.."
shape=${1:-EEVE-10.8B}
export TRANSFORMERS_VERBOSITY=error

part() {  # part SECONDS COMMAND...
    local limit=$1 started=$SECONDS
    shift
    echo "== $*"
    timeout "$limit" "$@" 2>&1 | grep -v USDT
    echo "== exit ${PIPESTATUS[0]} after $((SECONDS - started)) s"
}

part 90 python -m pytest -q -m gpu -k "captured or probe"
part 120 python -m benchmarks.operators --model "$shape" --article 1000 --questions 16 --compile
part 120 python -m benchmarks.training --model "$shape" --article 1000 --questions 32 --rounds 1 \
    --tokens_per_batch 8192
part 90 python -m benchmarks.inference --model "$shape" --article 1000 --questions 32 --rounds 1 \
    --no_continuous
part 60 python -m benchmarks.training --model small-qwen3.5 --article 450 --questions_per_article 6 \
    --questions 48 --rounds 1 --trl_batch 8
