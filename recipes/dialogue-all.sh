#!/usr/bin/env bash
# Refine the data, train the eleven models of the 98.0165 system (NIKL 2024, dialogue inference), answer and vote.
# Ties go to the option with the highest summed probability, then to the first model.
#   recipes/dialogue-all.sh [OPTION...]      options of fine_tune.py, for all eleven
set -euo pipefail
cd "$(dirname "$0")/.."
for file in train dev test; do
    if [ -e "data/dialogue/$file.json" ] && [ ! -e "data/dialogue/$file-refined.json" ]; then
        python -m tools.refine "data/dialogue/$file.json" "data/dialogue/$file-refined.json"
    fi
done
exec recipes/all.sh dialogue hard dialogue-{01..11} -- "$@"
