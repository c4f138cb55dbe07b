# As settings-dry.sh, but a slot only trains, and its first run stops after its first step.

source tools/gpu/settings-dry.sh
TASKS=""
OPTIONS="$OPTIONS --minutes 0.001"
