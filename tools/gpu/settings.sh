# The runs at the paper's size, on a GPU. Each line is NAME="VALUE", for Bash and for Python.

DEVICE="cuda"
SCALE="paper"                # of `maevit reproduce`
OPTIONS=""                   # more options of `maevit reproduce`
RECORDS="results/paper"      # where home.py puts the records of finished runs
WORK="gpu/work"              # on the machine; in the folder SLOT
SLOT="/tmp/slot"             # on the machine: where slot.sh works between the calls

# What a slot does first (speed, tests, attention), and the runs in their order.
TASKS=""
RUNS="c10-400 c10-400-to-c10 scratch-100-to-c10 trial trial-norm trial-attention-dropout trial-to-c10 trial-norm-to-c10 trial-attention-dropout-to-c10 c10-1600 c10-1600-to-c10 scratch-to-c10 c10 c10-to-c10 c100 c100-to-c100 scratch-to-c100 c10-to-c100 c100-to-c10 resnet56-to-c10 vit-lite-7-4-to-c10 cct-7-3x2-to-c10 resnet56-to-c100 vit-lite-7-4-to-c100 cct-7-3x2-to-c100"

# Options of measure.py and attention.py.
MEASURE="--recipe paper --seconds 0.8 --rounds 5 --steps 16 --rows 25"
ATTENTION="--dropout 0.1"

# Seconds at the end of a slot for measuring, saving and packing after the training.
RESERVE_SECONDS="55"

# Bytes: of a returned file, of all of them, of everything that a call carries with the tree, of
# the pieces among it, and of one of these.
PIECE_BYTES="15728640"
OUT_BYTES="65536000"
IN_BYTES="67108864"
CARRY_BYTES="67108864"
CARRY_PIECE_BYTES="1048576"

# What the machine has, and what it lacks and gets as wheels of pure Python.
MACHINE="torch torchvision numpy einops matplotlib transformers safetensors tqdm pytest pillow"
WHEELS="tyro docstring-parser typeguard typing-extensions fastprogress<1.1 filelock"
