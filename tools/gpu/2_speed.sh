#!/usr/bin/env bash
# Throughput: both phases and where the time goes, then the step of another implementation.
source tools/gpu/common.sh "$@"

status=0
for what in phases peers; do
    report "$what" python3 tools/gpu/measure.py "$what" --device "$DEVICE" $MEASURE \
        --out "$WORK/$what.json" || status=1
done
exit "$status"
