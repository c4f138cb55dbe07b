#!/usr/bin/env bash
# Returns the records and weights for which earlier calls had no room.
source tools/gpu/common.sh "$@"
