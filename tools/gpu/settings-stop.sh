# As settings-dry.sh, but no time remains for training, so a call stops after its first step.

source tools/gpu/settings-dry.sh
RESERVE_SECONDS="100000"
