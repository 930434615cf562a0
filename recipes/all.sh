#!/usr/bin/env bash
# Train several recipes, answer the test file with each and combine: recipes/all.sh NAME METHOD RECIPE... [-- OPTION...]
# NAME is the prefix of the run names, METHOD one of ensemble.py, OPTION of fine_tune.py; OUTPUT_DIR is the folder of the runs
# (default: outputs). After an interruption, the same command resumes; OPTION applies to runs that have not started.
set -euo pipefail
cd "$(dirname "$0")/.."
outputs=${OUTPUT_DIR:-outputs}
name=$1 method=$2
shift 2
recipes=()
while (($#)) && [ "$1" != -- ]; do
    recipes+=("$1")
    shift
done
if (($#)); then shift; fi
runs=()
for recipe in "${recipes[@]}"; do
    run="$outputs/$name-$recipe"
    if [ ! -d "$run/adapter" ]; then
        if compgen -G "$run/checkpoints/checkpoint-*" > /dev/null; then
            python fine_tune.py --resume "$run"
        else
            if [ -d "$run" ]; then  # interrupted before its first checkpoint, or still training
                flock -n "$run/.lock" true || { echo "error: $run is in use; wait until it ends" >&2; exit 2; }
                rm -rf "$run"
            fi
            python fine_tune.py --recipe "$recipe" --output_dir "$outputs" --run_name "$name-$recipe" "$@"
        fi
    fi
    if ! compgen -G "$run/answers/*/submission.*" > /dev/null; then
        python inference.py --run "$run"
    fi
    runs+=("$run")
done
python ensemble.py --method "$method" --output_dir "$outputs" "${runs[@]}"
