#!/usr/bin/env bash
# The 98.0165 system (NIKL 2024, dialogue inference) in one command: the files are cleaned, eleven models trained, each answers the
# test file, and they vote; ties go to the option with the largest summed probability, then to the model listed first.
#   recipes/dialogue-all.sh [OPTION...]      options of fine_tune.py, for all eleven
set -euo pipefail
cd "$(dirname "$0")/.."
for file in train dev test; do
    if [ -e "data/dialogue/$file.json" ] && [ ! -e "data/dialogue/$file-refined.json" ]; then
        python -m tools.refine "data/dialogue/$file.json" "data/dialogue/$file-refined.json"
    fi
done
exec recipes/all.sh dialogue hard dialogue-{01..11} -- "$@"
