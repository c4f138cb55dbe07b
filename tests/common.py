"""What tests of the command line share."""
import hashlib
import json
import sys

#: A recipe of seconds: 5 steps an epoch, exact on any CPU.
QUICK = ['--data', 'shapes', '--limit', '640', '--recipe', 'small', '--precision', 'fp32']
EPOCHS = 6


def maevit(*words):
    return [sys.executable, '-m', 'maevit_course.cli', *map(str, words)]


def digest(run):
    return hashlib.sha256((run / 'model.safetensors').read_bytes()).hexdigest()


def losses(run):
    return [json.loads(line)['loss'] for line in (run / 'metrics.jsonl').read_text().splitlines()]
