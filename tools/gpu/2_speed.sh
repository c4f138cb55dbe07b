#!/usr/bin/env bash
# Throughput: both phases, other implementations of the same step, and where the time goes.
source tools/gpu/common.sh "$@"

status=0
for phase in pretrain finetune; do
    report "bench-$phase" python3 -m maevit_course.cli bench --phase "$phase" \
        --device "$DEVICE" $BENCH || status=1
done
report peers python3 tools/gpu/peers.py --device "$DEVICE" $PEERS || status=1
for phase in pretrain finetune; do
    report "profile-$phase" python3 tools/gpu/profile_step.py --phase "$phase" \
        --device "$DEVICE" $PROFILE || status=1
done
exit "$status"
