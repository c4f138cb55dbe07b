# The dry run: the same chain with the small recipes and a few drawn images, on a CPU.

DEVICE="cpu"
SCALE="small"
OPTIONS="--epochs 4 --finetune-epochs 2"
RECORDS="gpu/records"
WORK="gpu/work"
SLOT="../slot"

TASKS="speed attention"
RUNS="c10 c10-to-c10 trial c10-to-c100"

MEASURE="--recipe small --batch-size 4 --seconds 0.05 --rounds 1 --steps 1 --rows 4 --gigabytes 0.01"
ATTENTION="--images 8"

RESERVE_SECONDS="0"

# A checkpoint comes back in several pieces, and the data need several calls.
PIECE_BYTES="4194304"
OUT_BYTES="16777216"
IN_BYTES="67108864"
CARRY_BYTES="2097152"
CARRY_PIECE_BYTES="262144"

MACHINE="torch torchvision numpy einops matplotlib transformers safetensors tqdm pytest pillow"
WHEELS="tyro docstring-parser typeguard typing-extensions fastprogress<1.1 filelock"
