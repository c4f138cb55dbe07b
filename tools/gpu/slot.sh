#!/usr/bin/env bash
# One call of a slot, whose work goes on in the background between the calls:
#
#     bash tools/gpu/slot.sh SETTINGS LOAD LEFT WAIT
#
# The first call copies the project to $SLOT and starts background.sh there. Each call takes in
# the pieces in the folder LOAD, says how many seconds of the slot are LEFT, waits at most WAIT
# seconds for the end of the work, shows the end of its log, and returns new files in $OUT.

set -uo pipefail
settings="$1" load="$2" left="$3" wait="$4"
source "$settings"
: "${OUT:?must name the folder for the files that are to come back}"
[ "$load" = none ] || [ -d "$load" ] || { echo "$load was not carried"; exit 1; }
[ "$load" != none ] || [ -e "$SLOT/started" ] || { echo "the first call needs a load"; exit 1; }
began="$SECONDS"
here="$PWD"
if [ ! -e "$SLOT/started" ]; then
    mkdir -p "$SLOT"
    cp -r maevit_course tests tools pyproject.toml setup.py settings.ini "$SLOT"
fi
cd "$SLOT" || exit 1
mkdir -p "$WORK" gpu/in
echo $(($(date +%s) + left)) > "$WORK/deadline.new"
mv "$WORK/deadline.new" "$WORK/deadline"
if [ -d "$here/$load" ]; then
    cp "$here/$load"/* gpu/in
    python3 tools/gpu/pieces.py receive gpu/in "$WORK" || exit 1
fi
if [ ! -e started ]; then
    touch started
    setsid nohup bash tools/gpu/background.sh "$settings" > background.log 2>&1 < /dev/null &
fi
while [ ! -e "$WORK/finished" ] && [ $((SECONDS - began)) -lt "$wait" ]; do sleep 0.5; done
mkdir -p "$WORK/reports"
cp background.log "$WORK/reports/background.txt"
tail -n 60 background.log
# What comes back in this call need not come back in the next one.
python3 tools/gpu/pieces.py send gpu/in "$WORK" "$OUT" "$PIECE_BYTES" "$OUT_BYTES" &&
    cp "$WORK/at-home.json" gpu/in/home.json
