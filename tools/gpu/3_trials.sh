#!/usr/bin/env bash
# Two trials: pre-norm against post-norm, and attention dropout on and off.
source tools/gpu/common.sh "$@"
train $TRIALS
