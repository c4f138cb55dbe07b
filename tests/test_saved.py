"""What is written to disk stays readable: names of parameters, settings and metadata."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common import EPOCHS, QUICK, digest
from maevit_course.cli import main
from maevit_course.core import InputError, from_saved
from maevit_course.models import MAE, Classifier, ModelConfig
from maevit_course.paper.experiments import PLANS, has_record, list_runs
from maevit_course.paper.tables import read_records
from maevit_course.pretraining import PRETRAIN_RECIPES
from maevit_course.weights import from_bytes

#: Names and shapes as version 0.1 wrote them. New names may be added; none may go or change.
GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


def keys(saved, prefix=""):
    "The names in nested dictionaries, as in `recipe.model.width`."
    for name, value in saved.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{name}.")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, pretrained):
    out = tmp_path_factory.mktemp("run") / "classifier"
    words = ["finetune", *QUICK, "--epochs", "1", "--weights", str(pretrained)]
    assert main([*words, "--out", str(out)]) == 0
    return out


def models():
    for name, config in (("paper", ModelConfig()), ("small", PRETRAIN_RECIPES["small"].model)):
        yield f"{name} mae", MAE(config)
        yield f"{name} classifier", Classifier(config.encoder(), 10)


def test_parameters_keep_their_names_and_shapes():
    for name, model in models():
        found = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
        assert found == GOLDEN["parameters"][name], name


def test_settings_and_metadata_keep_their_names(pretrained, classifier):
    for kind, run in (("mae", pretrained), ("classifier", classifier)):
        config = json.loads((run / "config.json").read_text())
        assert set(GOLDEN["config"][kind]) <= set(keys(config))
        _, about = from_bytes((run / "model.safetensors").read_bytes())
        assert set(GOLDEN["weights"][kind]) <= set(keys(about))
        _, about = from_bytes((run / "checkpoint.safetensors").read_bytes())
        assert set(GOLDEN["checkpoint"]) <= set(keys(about))


def test_summaries_keep_their_names():
    for record in read_records("small").values():
        assert set(GOLDEN["summary"][record.config["phase"]]) <= set(keys(record.summary))


def test_a_setting_that_a_record_lacks_has_the_value_it_had_in_0_1(pretrained, tmp_path):
    out = shutil.copytree(pretrained, tmp_path / "run")
    config = json.loads((out / "config.json").read_text())
    del config["recipe"]["min_lr_ratio"], config["recipe"]["model"]["norm_first"]
    (out / "config.json").write_text(json.dumps(config))
    words = ["pretrain", *QUICK, "--epochs", str(EPOCHS), "--out", str(out), "--resume"]
    assert main(words) == 0 and digest(out) == digest(pretrained)
    assert main([*words, "--min-lr-ratio", "0.1"]) == 2

    first = list_runs(PLANS["small"])[0]
    record = shutil.copytree(read_records("small")["trial"].folder, tmp_path / "trial")
    config = json.loads((record / "config.json").read_text())
    del config["recipe"]["alpha"]
    (record / "config.json").write_text(json.dumps(config))
    assert has_record(first, tmp_path)


def test_a_setting_can_be_added_with_another_default():
    @dataclass(frozen=True)
    class Inner:
        width: int = 1
        activation: str = field(default="gelu", metadata={"0.1": "relu"})

    @dataclass(frozen=True)
    class Outer:
        inner: Inner = Inner()
        optimizer: str = field(default="muon", metadata={"0.1": "adamw"})

    assert from_saved(Outer, {"inner": {"width": 2}}) == Outer(Inner(2, "relu"), "adamw")
    assert from_saved(Outer, {"optimizer": "sgd"}) == Outer(Inner(), "sgd")
    with pytest.raises(InputError, match="'magic'"):
        from_saved(Outer, {"magic": 1})
