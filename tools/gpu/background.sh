#!/usr/bin/env bash
# The work of a slot, started by slot.sh: what $TASKS lists, and then the unfinished ones of $RUNS
# whose data set is there. $WORK/deadline says when the slot ends.

set -uo pipefail
source "$1"
export PYTHONPATH="$PWD:$PWD/$WORK/packages${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export TORCHINDUCTOR_CACHE_DIR="$PWD/$WORK/inductor" TRITON_CACHE_DIR="$PWD/$WORK/triton"
mkdir -p "$WORK/packages" "$WORK/reports" "$WORK/runs"
MAEVIT_COMMIT="$(cat gpu/in/commit.txt)"
export MAEVIT_COMMIT
reports="$WORK/reports"
say() { echo "[$SECONDS s] $*"; }
trap 'say finished; touch "$WORK/finished"' EXIT
left() { echo $(($(cat "$WORK/deadline") - $(date +%s))); }

# until_compiled PROCESS REPORT: wait until measure.py has compiled everything, at most until two
# minutes before the end of the slot.
until_compiled() {
    while kill -0 "$1" 2> /dev/null && ! grep -q "^all is compiled" "$2" && [ "$(left)" -gt 120 ]; do
        sleep 0.3
    done
}

# Measure the throughput, with nothing beside it.
run_speed() {
    say "compile the steps to be measured"
    python3 tools/gpu/measure.py phases --device "$DEVICE" $MEASURE \
        --wait "$WORK/go-phases" > "$reports/phases.txt" 2>&1 &
    phases=$!
    python3 tools/gpu/measure.py peers --device "$DEVICE" $MEASURE \
        --wait "$WORK/go-peers" > "$reports/peers.txt" 2>&1 &
    peers=$!
    until_compiled "$phases" "$reports/phases.txt"
    until_compiled "$peers" "$reports/peers.txt"
    say "measure the phases"
    touch "$WORK/go-phases"
    wait "$phases" || say "the measurement of the phases failed"
    touch "$WORK/go-peers"
    wait "$peers" || say "the measurement of the peers failed"
    head -n 40 "$reports/phases.txt"
    tail -n 8 "$reports/peers.txt"
}

# Start the tests that need a GPU, in eight processes that give way to the training.
run_tests() {
    say "start the tests"
    for words in "steps_within and auto and pretrain" "steps_within and auto and not pretrain" \
        "steps_within and fp16 and pretrain" "steps_within and fp16 and not pretrain" \
        "from_pre_training and bf16" "from_pre_training and fp16" "resumed" \
        "cuda or model_computes or autoaugment_draws or attention_drops or obeys_the_seed"; do
        TORCHINDUCTOR_COMPILE_THREADS=2 timeout 400 nice -n 19 python3 -m pytest -q -rs -p no:cacheprovider \
            tests/test_gpu.py tests/test_speed.py -k "($words) and not pretended" \
            > "$reports/tests-${words// /-}.txt" 2>&1 &
    done
}

# Check and time ways to compute attention, and measure the throughput with our own kernel and with
# PyTorch's.
run_attention() {
    say "compile the steps to be measured"
    for way in ours pytorch; do
        timeout 330 python3 tools/gpu/measure.py phases --device "$DEVICE" $MEASURE \
            $([ "$way" = ours ] || echo --attention "$way") \
            --wait "$WORK/go-$way" > "$reports/phases-$way.txt" 2>&1 &
        declare "$way=$!"
    done
    until_compiled "$ours" "$reports/phases-ours.txt"
    until_compiled "$pytorch" "$reports/phases-pytorch.txt"
    say "measure ways to compute attention"
    timeout 150 python3 tools/gpu/attention.py --device "$DEVICE" $ATTENTION > "$reports/attention.txt" 2>&1
    grep size "$reports/attention.txt" || say "no attention was measured"
    for way in ours pytorch; do
        touch "$WORK/go-$way"
        wait "${!way}" || say "the measurement with attention \"$way\" failed"
        head -n 40 "$reports/phases-$way.txt"
    done
}

for wheel in "$WORK"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$WORK/packages" || say "$wheel could not be unpacked"
done
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv > "$reports/machine.txt" 2>&1
nproc >> "$reports/machine.txt"
cat "$reports/machine.txt"

for task in $TASKS; do "run_$task"; done

say "wait for the data"
until python3 tools/gpu/pieces.py waiting gpu/in "$WORK"; do
    [ "$(left)" -gt 60 ] || { say "the data did not arrive"; exit 1; }
    sleep 1
done
for name in cifar10 cifar100; do
    [ -d "$WORK/$name" ] || continue
    python3 tools/gpu/sheets.py decode "$WORK/$name" "$WORK/$name.npz" ||
        { say "damaged data"; exit 1; }
done

# The name of the data set that a run needs.
data_of() {
    case "$1" in
        c100 | *-to-c100) echo cifar100 ;;
        *) echo cifar10 ;;
    esac
}

# Train until the time is up, and resume what an earlier slot has begun. A run that fails does not
# stop those that follow.
for run in $RUNS; do
    [ -e "$WORK/$(data_of "$run").npz" ] && [ ! -e "$WORK/runs/$run/summary.json" ] || continue
    seconds=$(($(left) - RESERVE_SECONDS))
    [ "$seconds" -gt 90 ] || { say "no time left for $run"; break; }
    say "$run: at most $seconds s"
    timeout --kill-after=15 $((seconds + RESERVE_SECONDS / 2)) python3 -m maevit_course.cli \
        reproduce "$run" --scale "$SCALE" --cifar10 "$WORK/cifar10.npz" \
        --cifar100 "$WORK/cifar100.npz" --out "$WORK/runs" --results "$WORK/runs" \
        --device "$DEVICE" --minutes "$(python3 -c "print($seconds / 60)")" $OPTIONS
    status=$?
    say "$run ended with status $status"
    [ "$status" -ne 130 ] || break  # its time was up
done
while [ -n "$(jobs -rp)" ] && [ "$(left)" -gt 40 ]; do sleep 1; done
tail -qn 1 "$reports"/tests-*.txt 2> /dev/null
