import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
os.environ["MAEVIT_CACHE"] = "0"  # no test leaves anything in the cache of whoever runs it


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
        ),
    ]
)
def device(request):
    return torch.device(request.param)


@pytest.fixture(scope="session")
def cifar10_or_none(tmp_path_factory):
    "The real CIFAR-10 as an .npz, where a copy lies beside the project, and None elsewhere."
    unpack = ROOT.parent / "shared/cifar/unpack.py"
    if not unpack.exists():
        return None
    file = tmp_path_factory.mktemp("cifar") / "cifar10.npz"
    subprocess.run([sys.executable, unpack, "cifar10", file], check=True, capture_output=True)
    return file


@pytest.fixture(scope="session")
def cifar10_file(cifar10_or_none):
    "The real CIFAR-10 as an .npz; without a copy beside the project, the test is skipped."
    if cifar10_or_none is None:
        pytest.skip("no copy of CIFAR-10 beside the project")
    return cifar10_or_none


@pytest.fixture(scope="session")
def cifar10(cifar10_file):
    "Its training images."
    from maevit_course.data import load_data

    return load_data(str(cifar10_file))[0]


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    "The folder of a short undisturbed pre-training run."
    from common import EPOCHS, QUICK
    from maevit_course.cli import main

    out = tmp_path_factory.mktemp("run") / "mae"
    assert main(["pretrain", *QUICK, "--epochs", str(EPOCHS), "--out", str(out)]) == 0
    return out
