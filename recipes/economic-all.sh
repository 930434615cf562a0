#!/usr/bin/env bash
# The 0.9025 system (Inha Wolminji, 2024 Inha AI Challenge, 2nd) in one command: three bases are trained, each answers the test
# file, and they vote; ties go to the answer with the highest summed F1, then to the model listed first. Published: the three alone
# 89.1, 88.0 and 88.5, together 90.25. Never run by us on its bases; some of theirs were trained on a part of the data.
#   recipes/economic-all.sh [OPTION...]      options of fine_tune.py, for all three
#   OUTPUT_DIR=/content/drive/MyDrive/outputs recipes/economic-all.sh
exec "$(dirname "$0")/all.sh" economic vote_f1 ko-gemma-2-9b eeve-10.8b nous-solar-10.7b -- "$@"
