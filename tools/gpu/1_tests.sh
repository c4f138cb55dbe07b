#!/usr/bin/env bash
# Correctness: the machine, and the tests that need a GPU. They need no CIFAR.
source tools/gpu/common.sh "$@"

report machine python3 -m torch.utils.collect_env
report tests python3 -m pytest -q -rs -p no:cacheprovider tests/test_gpu.py tests/test_speed.py \
    -k "gpu or cuda"
status=$?
if [ "$DEVICE" = cuda ] && grep -q "no GPU" "$WORK/reports/tests.txt"; then
    echo "tests were skipped, because PyTorch finds no GPU"
    status=1
fi
exit "$status"
