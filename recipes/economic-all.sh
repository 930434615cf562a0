#!/usr/bin/env bash
# Train the three models of the 0.9025 system (Wolminji, 2nd, 2024 Inha AI Challenge), answer the test file and vote.
# Ties go to the answer with the highest summed F1, then to the first model. Published: 89.1, 88.0 and 88.5 alone, 90.25 together.
# Not run by us with these bases; the authors trained some of theirs on a part of the data.
#   recipes/economic-all.sh [OPTION...]      options of fine_tune.py, for all three
#   OUTPUT_DIR=/content/drive/MyDrive/outputs recipes/economic-all.sh
exec "$(dirname "$0")/all.sh" economic vote_f1 wolminji-{ko-gemma-2-9b,eeve-10.8b,nous-solar-10.7b} -- "$@"
