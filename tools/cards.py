"""Write the model cards of the bundled weights from the records of their runs."""

import shutil
import tempfile
from pathlib import Path

from maevit_course.cards import write_card
from maevit_course.runs import RunRecord
from maevit_course.weights import MODEL, weights_file

ROOT = Path(__file__).resolve().parent.parent
#: The bundled weights, and the run in results/ whose weights they are.
ORIGIN = {
    "c10": "hour/pretrain-0",
    "c10-classifier": "hour/finetune-0",
    "shapes": "shapes/pretrain-0",
    "shapes-classifier": "shapes/finetune-0",
}


def with_final_accuracy(text, record):
    "Return the card of a classifier with the accuracy of its saved weights, not of the last epoch."
    if record.phase == "pretrain":
        return text
    final = record.measured()
    text = text.replace(f'"value": {record.test_accuracy}', f'"value": {final}')
    place = "`accuracy` were measured on augmented training images."
    note = f"The saved weights have a test accuracy of {final:.4f}, measured in float32."
    return text.replace(place, f"{place} {note}")


def bundled_card(name):
    "Return the model card of bundled weights."
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / name
        shutil.copytree(ROOT / "results" / ORIGIN[name], run)
        shutil.copy(weights_file(name), run / MODEL)
        text = write_card(run).read_text(encoding="utf-8")
    before, limits = text.split("- You must choose the licence")
    _, recipe = limits.split("\n\n", 1)
    license = (
        "- The weights have the licence of the library, Apache 2.0. They are rounded to 16 bits."
    )
    text = f"{before}{license}\n\n{recipe}"
    text = text.replace("# this folder", "# bundled with the library")
    text = with_final_accuracy(text, RunRecord.load(ROOT / "results" / ORIGIN[name]))
    record = f"The record of this run is `results/{ORIGIN[name]}` in the repository.\n\n"
    text = text.replace("## Recipe\n\n", f"## Recipe\n\n{record}")
    return text.replace("---\n", '---\nlicense: "apache-2.0"\n', 1)


if __name__ == "__main__":
    for name in ORIGIN:
        (ROOT / f"maevit_course/bundled/{name}.md").write_text(bundled_card(name), encoding="utf-8")
