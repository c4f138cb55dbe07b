#!/usr/bin/env bash
# The main runs: starts or resumes the next ones, until the time is up.
source tools/gpu/common.sh "$@"
train $RUNS
