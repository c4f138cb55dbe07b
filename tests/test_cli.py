"""The command line and the library on real files: end to end, interrupted, resumed, refused."""
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from maevit_course.cli import main
from maevit_course.data import load_data

QUICK = ['--data', 'shapes', '--limit', '640', '--recipe', 'small']


def maevit(*words):
    return [sys.executable, '-m', 'maevit_course.cli', *map(str, words)]


def digest(run):
    return hashlib.sha256((run / 'model.safetensors').read_bytes()).hexdigest()


def losses(run):
    return [json.loads(line)['loss'] for line in (run / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    out = tmp_path_factory.mktemp('run') / 'mae'
    assert main(['pretrain', *QUICK, '--epochs', '6', '--out', str(out)]) == 0
    return out


def test_killed_and_resumed_ends_with_the_same_bits(pretrained, tmp_path):
    "kill -9 at some moment after the first checkpoint, several times in a row."
    command = maevit('pretrain', *QUICK, '--epochs', 6, '--out', tmp_path / 'mae', '--checkpoint-minutes', 0, '--resume')
    for kills in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        checkpoint = tmp_path / 'mae/checkpoint.pt'
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            time.sleep(0.01)
        time.sleep(0.15 * kills)
        process.kill()
        process.wait()
    assert not (tmp_path / 'mae/model.safetensors').exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert digest(tmp_path / 'mae') == digest(pretrained)
    assert losses(tmp_path / 'mae') == losses(pretrained)


def test_sigterm_saves_and_says_how_to_go_on(pretrained, tmp_path):
    command = maevit('pretrain', *QUICK, '--epochs', 6, '--out', tmp_path / 'mae', '--checkpoint-minutes', 60)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / 'mae/metrics.jsonl').exists() or not losses(tmp_path / 'mae'):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and '--resume' in errors and errors.count('\n') == 1
    assert main([*command[3:], '--resume']) == 0
    assert digest(tmp_path / 'mae') == digest(pretrained)


def test_finetune_evaluate_and_report(pretrained, tmp_path, capsys):
    out = tmp_path / 'classifier'
    assert main(['finetune', *QUICK, '--epochs', '3', '--weights', str(pretrained), '--labels-per-class', '20', '--out', str(out)]) == 0
    assert main(['finetune', *QUICK, '--epochs', '3', '--labels-per-class', '20', '--out', str(tmp_path / 'scratch')]) == 0
    capsys.readouterr()
    assert main(['evaluate', *QUICK[:4], '--weights', str(out), '--json']) == 0
    measured = json.loads(capsys.readouterr().out)['accuracy']
    logged = json.loads((out / 'metrics.jsonl').read_text().splitlines()[-1])['test_accuracy']
    assert measured == pytest.approx(logged, abs=0.02)  # float32 here, bf16 in training
    assert main(['evaluate', *QUICK[:4], '--weights', str(pretrained)]) == 0
    for run in (out, tmp_path / 'scratch', pretrained):
        page = (run / 'report.html').read_text()
        assert page.count('<img') == 2 and 'src="http' not in page


def test_bench_prints_numbers(capsys):
    assert main(['bench', *QUICK, '--seconds', '0.2', '--json']) == 0
    rates = json.loads(capsys.readouterr().out)
    assert all(rates[name] > 0 for name in ('data', 'step', 'training', 'efficiency'))


def test_weights_know_their_recipe_and_the_checkpoint_holds_only_plain_values(pretrained):
    from maevit_course.runs import read_weights
    _, about = read_weights(pretrained, 'mae')
    assert about['recipe']['epochs'] == 6 and about['model']['patch_size'] == 4
    state = torch.load(pretrained / 'checkpoint.pt', weights_only=True)
    assert state['epoch'] == 6 and state['step'] == 0


@pytest.mark.parametrize('words, said', [
    ('pretrain --data nowhere', "'nowhere'"),
    ('pretrain --recipe papre', "'papre'"),
    ('pretrain --recipe small --epochs 0', 'epochs is 0'),
    ('pretrain --recipe small --limit 100 --batch-size 101', 'batch_size 101'),
    ('pretrain --recipe small --mask-ratio 1', 'mask_ratio 1.0'),
    ('pretrain --recipe small --device gpu', "'gpu'"),
    ('finetune --recipe small --weights nowhere', "'nowhere'"),
    ('finetune --recipe small --labels-per-class 99999', '99999'),
    ('evaluate --weights nowhere', "'nowhere'"),
    ('fly', "'fly'"),
])
def test_wrong_input_is_one_line_and_status_2(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1
    assert not list(tmp_path.rglob('*.pt')) and not list(tmp_path.rglob('*.safetensors'))


def test_a_run_is_neither_overwritten_nor_resumed_as_another(pretrained, capsys):
    before = digest(pretrained)
    assert main(['pretrain', *QUICK, '--epochs', '6', '--out', str(pretrained)]) == 2
    assert main(['pretrain', *QUICK, '--epochs', '6', '--out', str(pretrained), '--resume', '--base-lr', '0.5', '--seed', '3']) == 2
    error = capsys.readouterr().err
    assert 'base_lr' in error and 'seed' in error and digest(pretrained) == before


def test_an_npz_with_a_pickle_does_not_run_it(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'sprung'),)
    np.savez(tmp_path / 'trap.npz', train_images=np.array([Trap()], dtype=object))
    assert main(['pretrain', '--data', str(tmp_path / 'trap.npz')]) == 2
    assert not (tmp_path / 'sprung').exists()


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I;16', 'I', 'F'])
def test_a_folder_of_any_mode_becomes_rgb(mode, tmp_path):
    "A dark and a bright half must still be dark and bright, whatever the mode; sizes differ."
    for split in ('train', 'test'):
        for name, side in (('a', 20), ('b', 33)):
            (tmp_path / split / name).mkdir(parents=True)
            grey = np.zeros((side, side), np.uint8)
            grey[:, side // 2:] = 250
            image = Image.fromarray(grey)
            if mode == 'I;16':
                image = Image.fromarray(grey.astype(np.uint16) * 257)
            elif mode in ('I', 'F'):
                image = Image.fromarray(grey.astype({'I': np.int32, 'F': np.float32}[mode]))
            else:
                image = image.convert('RGB').convert(mode)
            image.save(tmp_path / split / name / 'x.tiff')
    train, test = load_data(str(tmp_path))
    assert train.images.shape == test.images.shape == (2, 3, 64, 64)
    assert (train.images[..., 4:60, 4:20].float().mean() < 30) and (train.images[..., 4:60, 44:60].float().mean() > 220)


def test_a_mistake_does_not_use_up_the_folder(tmp_path):
    words = ['pretrain', '--data', 'shapes', '--limit', '100', '--recipe', 'small', '--epochs', '1', '--out', str(tmp_path / 'run')]
    assert main(words) == 2  # fewer images than a batch
    assert main([*words, '--batch-size', '50']) == 0


def test_a_limit_takes_images_of_every_class(tmp_path):
    images, labels = np.zeros((400, 8, 8), np.uint8), np.arange(400) // 40
    np.savez(tmp_path / 'sorted.npz', train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    train, _ = load_data(str(tmp_path / 'sorted.npz'), limit=100)
    assert len(train) == 100 and len(train.labels.unique()) == 10


@pytest.mark.parametrize('text, kind', [('labels', 'train_labels'), ('short', 'labels'), ('float', 'uint8'), ('zip', 'npz')])
def test_a_wrong_npz_is_explained(text, kind, tmp_path, capsys):
    images, labels = np.zeros((8, 8, 8), np.uint8), np.arange(8) % 2
    good = dict(train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    change = {'labels': {'train_labels': np.array(['a'] * 8)}, 'short': {'test_labels': labels[:3]}, 'float': {'train_images': images / 2}, 'zip': {}}
    np.savez(tmp_path / 'x.npz', **(good | change[text]))
    if text == 'zip':
        (tmp_path / 'x.npz').write_bytes((tmp_path / 'x.npz').read_bytes()[:200])
    assert main(['pretrain', '--data', str(tmp_path / 'x.npz'), '--out', str(tmp_path / 'run')]) == 2
    error = capsys.readouterr().err
    assert kind in error and error.count('\n') == 1
