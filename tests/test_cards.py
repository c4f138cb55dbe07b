"""Every finished run has a model card that people and hubs can read."""

import importlib.util
import json
import re

import pytest
from PIL import Image

from cards import ORIGIN, bundled_card
from common import QUICK
from conftest import ROOT
from maevit_course.cards import write_card
from maevit_course.cli import main
from maevit_course.core import InputError
from maevit_course.runs import RunRecord
from maevit_course.weights import bundled_weights


@pytest.fixture(scope="module")
def classifier(pretrained, tmp_path_factory):
    "The folder of a short fine-tuning run, with an awkward name."
    out = tmp_path_factory.mktemp("cards") / "it's <b>"
    words = ["finetune", *QUICK, "--epochs", "1", "--weights", str(pretrained), "--out", str(out)]
    assert main(words) == 0
    return out


def header_of(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    return dict(line.split(": ", 1) for line in text.split("---\n")[1].splitlines()), text


def test_the_header_has_what_hubs_read(pretrained, classifier):
    header, text = header_of(classifier)
    values = {key: json.loads(value) for key, value in header.items()}
    assert values["pipeline_tag"] == "image-classification"
    result = values["model-index"][0]["results"][0]
    accuracy = RunRecord.load(classifier).test_accuracy
    assert result["metrics"] == [{"type": "accuracy", "value": accuracy}]
    assert "fine-tuned from a masked autoencoder" in text and f"`{accuracy:.4f}`" in text
    header, text = header_of(pretrained)
    assert json.loads(header["pipeline_tag"]) == "image-feature-extraction"
    assert "model-index" not in header and "labels were not used" in text


@pytest.mark.skipif(not importlib.util.find_spec("huggingface_hub"), reason="no huggingface_hub")
def test_the_hub_reads_the_header(pretrained, classifier):
    from huggingface_hub import ModelCard

    card = ModelCard.load(classifier / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_value == RunRecord.load(classifier).test_accuracy
    assert result.dataset_name == "toys" and card.data.library_name == "maevit_course"
    assert ModelCard.load(pretrained / "README.md").data.pipeline_tag == "image-feature-extraction"


@pytest.mark.parametrize("which", ["pretrained", "classifier"])
def test_the_lines_of_the_card_run(which, request, monkeypatch):
    folder = request.getfixturevalue(which)
    code = re.search(r"```python\n(.*?)```", header_of(folder)[1], re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line]) <= 5
    monkeypatch.chdir(folder.parent)
    Image.new("RGB", (40, 30)).save("photo.jpg")
    names = {}
    exec(code, names)
    if which == "pretrained":
        assert names["features"].shape == (1, 128)
    else:
        assert names["classifier"].predict_proba(["photo.jpg"]).shape == (1, 10)


def test_names_from_outside_stay_text(pretrained, tmp_path):
    for name in ("config.json", "metrics.jsonl", "environment.json", "model.safetensors"):
        (tmp_path / name).write_bytes((pretrained / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["data"]["name"] = 'x`"\n---\n<script>|'
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_card(tmp_path)
    header, text = header_of(tmp_path)
    assert "library_name" in header
    assert """`x'" --- <script>|`""" in text  # outside tables, a bar needs no backslash
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="no epoch has finished"):
        write_card(tmp_path)


def test_bundled_weights_have_their_cards():
    bundled = ROOT / "maevit_course/bundled"
    assert {path.stem for path in bundled.glob("*.md")} == set(ORIGIN) == set(bundled_weights())
    for name in ORIGIN:
        text = (bundled / f"{name}.md").read_text(encoding="utf-8")
        assert text == bundled_card(name), "run python tools/cards.py"
