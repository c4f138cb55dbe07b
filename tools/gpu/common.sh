# The common part of the numbered scripts, called as `bash tools/gpu/N_NAME.sh SETTINGS [SECONDS]`
# in the root of the project, with an empty folder $OUT for the files that are to come back.

set -uo pipefail
source "$1"
LIMIT="${2:-$CALL_SECONDS}"  # of this call, in seconds; Bash counts them in SECONDS
: "${OUT:?must name the folder for the files that are to come back}"

export PYTHONPATH="$PWD:$PWD/$WORK/packages${PYTHONPATH:+:$PYTHONPATH}"
export TORCHINDUCTOR_CACHE_DIR="$PWD/$WORK/inductor" TRITON_CACHE_DIR="$PWD/$WORK/triton"
mkdir -p "$WORK/packages" "$WORK/reports" "$WORK/runs"

# Take in the load of this call, and return new files when the script ends.
python3 tools/gpu/pieces.py receive gpu/in "$WORK" || exit 1
finish() {
    local status=$?
    python3 tools/gpu/pieces.py send gpu/in "$WORK" "$OUT" "$PIECE_BYTES" "$OUT_BYTES" || status=1
    exit "$status"
}
trap finish EXIT
export MAEVIT_COMMIT="$(cat gpu/in/commit.txt)"

# A wheel of pure Python is installed by unpacking it, which needs no pip.
for wheel in "$WORK"/wheels/*.whl; do
    [ -e "$wheel" ] || continue
    python3 -m zipfile -e "$wheel" "$WORK/packages" && rm "$wheel" || exit 1
done
for name in cifar10 cifar100; do
    [ -d "$WORK/$name" ] || continue
    python3 tools/gpu/sheets.py decode "$WORK/$name" "$WORK/$name.npz" || exit 1
    rm -r "$WORK/$name"
done

# Run a command until the time of this call is up.
limited() {
    local left=$((LIMIT - SECONDS))
    [ "$left" -gt 0 ] || { echo "no time left for: $*"; return 124; }
    timeout --kill-after=15 "$left" "$@"
}

# report NAME COMMAND...: show the output of a command, and return it as a file too.
report() {
    local name="$1"
    shift
    echo "== $name"
    limited "$@" 2>&1 | tee "$WORK/reports/$name.txt"
    local status="${PIPESTATUS[0]}"
    [ "$status" -eq 0 ] || echo "$name ended with status $status"
    return "$status"
}

# The name of the data set that a run needs.
data_of() {
    case "$1" in
        c100 | *-to-c100) echo cifar100 ;;
        *) echo cifar10 ;;
    esac
}

# train RUN...: start or resume these runs one after the other, until the time is up. The first
# one does at least one step. A run that fails gets a note, so that later calls skip it.
train() {
    local run start seconds started=0 failed=0
    python3 tools/gpu/pieces.py waiting gpu/in "$WORK" || return 0
    for run in "$@"; do
        start="${run%%-to-*}"
        seconds=$((LIMIT - SECONDS - RESERVE_SECONDS))
        if [ -e "$WORK/runs/$run/summary.json" ] || [ -e "$WORK/runs/$run/failed.txt" ]; then
            continue
        elif [ "$start" != "$run" ] && [ -e "$WORK/runs/$start/failed.txt" ]; then
            continue
        elif [ ! -e "$WORK/$(data_of "$run").npz" ]; then
            echo "$run waits for its data"
            return "$failed"
        elif [ "$seconds" -le 0 ]; then
            [ "$started" -eq 0 ] || return "$failed"
            seconds=0
        fi
        started=1
        echo "== $run, at most $seconds s"
        limited python3 -m maevit_course.cli reproduce "$run" --scale "$SCALE" \
            --cifar10 "$WORK/cifar10.npz" --cifar100 "$WORK/cifar100.npz" \
            --out "$WORK/runs" --results "$WORK/runs" --device "$DEVICE" $OPTIONS \
            --minutes "$((seconds / 60)).$(printf '%02d' $((seconds % 60 * 100 / 60)))1"
        case "$?" in
            0) ;;
            124 | 130 | 137 | 143) echo "$run goes on in the next call"; return "$failed" ;;
            *)
                echo "$run failed"
                failed=1
                mkdir -p "$WORK/runs/$run"
                echo "failed: delete this file to try again" > "$WORK/runs/$run/failed.txt"
                ;;
        esac
    done
    return "$failed"
}
