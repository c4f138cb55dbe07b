"""Pages from `results/`: one for each run, and one that lists them."""

import json
import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt

from lessons import REPOSITORY, relink
from maevit_course.paper.tables import finetuning_table, markdown_table, percent
from maevit_course.plots import course_style
from maevit_course.progress import duration
from maevit_course.reports import show_curves
from maevit_course.runs import RunRecord
from notebooks import ROOT, SETTINGS

RESULTS = ROOT / "results"
GALLERY = "Test images, each shown as original, visible patches and reconstruction."
EPOCH = "Four training images as original, visible patches and reconstruction after epoch {}."


def find_records() -> dict[str, RunRecord]:  # by "scale/name"
    "Read the records of all finished runs."
    folders = sorted(path.parent for path in RESULTS.glob("*/*/summary.json"))
    return {f.relative_to(RESULTS).as_posix(): RunRecord.load(f) for f in folders}


def describe(record: RunRecord) -> str:
    "Return a sentence on what a run did."
    data, start = record.config["data"], record.summary.get("start")
    done = {"pretrain": "Pre-training", "finetune": "Fine-tuning"}[record.phase]
    if record.phase == "finetune":
        done += f" that started from `{start}`" if start else " from random weights"
    return (
        f"{done} on {data['images']:,} images of {data['size']}×{data['size']} pixels "
        f"from `{data['name']}` for {record.epochs} epochs, which took {duration(record.seconds)}."
    )


def result(record: RunRecord) -> str:
    "Return the main result of a run: its test accuracy, or its loss on test images."
    if record.phase == "finetune":
        return f"{percent(record.measured())} %"
    name = "loss" if record.measured("loss") is not None else "test_loss"
    value = record.measured(name)
    return "–" if value is None else f"{value:.4f}"


def flat(values: dict, prefix: str = "") -> dict:
    "Return a nested dictionary as a flat one, with names such as `model.width`."
    rows = {}
    for name, value in values.items():
        rows |= (
            flat(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {f"{prefix}{name}": value}
        )
    return rows


def table(values: dict) -> str:
    "Return a nested dictionary as a Markdown table with two columns."
    return markdown_table(
        ["name", "value"], [[f"`{k}`", str(v)] for k, v in flat(values).items()]
    ).replace("--:", ":--")


def fold(summary: str, text: str) -> str:
    "Return a Markdown text that is folded below a line."
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def draw_curves(record: RunRecord, path: Path) -> str:  # the alternative text
    "Save the curves of a run and describe them."
    fields = ("loss", "masked", "visible", "accuracy", "test_accuracy")
    figure = show_curves({"": record.history}, fields)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    first, last = record.history[0]["loss"], record.history[-1]["loss"]
    return (
        f"Curves over the epochs. The training loss changes from {first:.4f} after the first epoch "
        f"to {last:.4f} after epoch {record.epochs}."
    )


def write_run(name: str, record: RunRecord, pages: Path) -> None:
    "Write the page of one run, `results/<scale>/<run>.md`, and its figures."
    page = pages / f"results/{name}.md"
    figures = page.with_suffix("")
    figures.mkdir(parents=True)
    pictures = {"gallery.jpg": GALLERY} if (record.folder / "gallery.jpg").exists() else {}
    for path in sorted(record.folder.glob("epoch-*.jpg")):
        pictures[path.name] = EPOCH.format(int(path.stem.partition("-")[2]))
    for picture in pictures:
        shutil.copy(record.folder / picture, figures)
    pictures = {"curves.svg": draw_curves(record, figures / "curves.svg"), **pictures}
    shown = [f"![{alt}]({figures.name}/{file})\n\n*{alt}*" for file, alt in pictures.items()]
    link = f"{REPOSITORY}/tree/{SETTINGS['branch']}/results/{name}"
    measured = record.summary.get("measured", {})
    parts = [
        f"# {name}",
        describe(record),
        "## Measured with the final weights" if measured else "",
        table(measured) if measured else "",
        "## Figures",
        *shown,
        "## Record",
        f"The folder [results/{name}]({link}) holds the settings, the log of every epoch, the "
        "machine and this summary.",
        fold("Settings", table(record.config["recipe"])),
        fold("Data", table(record.config["data"])),
        fold("Machine", table(record.environment)),
    ]
    page.write_text("\n\n".join(part for part in parts if part), encoding="utf-8")


def list_of_runs(records: dict[str, RunRecord]) -> str:
    "Return a table of all runs with links to their pages."
    rows = [
        [f"[{name}]({name}.md)", r.phase, r.config["data"]["name"], str(r.epochs), result(r)]
        for name, r in records.items()
    ]
    head = ["run", "phase", "data", "epochs", "test accuracy or loss on test images"]
    return markdown_table(head, rows)


def write_records(pages: Path) -> None:
    "Write the result pages."
    records = find_records()
    (pages / "results").mkdir(parents=True)
    with plt.rc_context():
        course_style()
        for name, record in records.items():
            write_run(name, record, pages)
    small = {n.partition("/")[2]: r for n, r in records.items() if n.startswith("small/")}
    shown = {name: record for name, record in small.items() if not name.startswith("trial")}
    about = relink(
        (RESULTS / "README.md").read_text(encoding="utf-8"), "results/README.md", "results/index.md"
    )
    about = about.replace("# Records of real runs", "## How the records are made")
    text = (
        "# Results of real runs\n\nEvery number on these pages comes from a record in `results/`. "
        "The first table compares classifiers after fine-tuning (test accuracy in percent).\n\n"
        f"{finetuning_table(shown)}\n\n## All runs\n\n{list_of_runs(records)}\n\n{about}\n\n"
    )
    tree = ["```{toctree}", ":hidden:", "", *records, "```"]
    (pages / "results/index.md").write_text(text + "\n".join(tree), encoding="utf-8")


def headline() -> dict[str, str]:
    "Return the accuracies that the landing page states, in percent, by the run's name."
    values = {}
    for name in ("hour/finetune-0", "hour/few-0", "hour/few-scratch-0"):
        summary = json.loads((RESULTS / f"{name}/summary.json").read_text(encoding="utf-8"))
        values[re.sub("[-/]", "_", name)] = percent(summary["measured"]["accuracy"])
    return values
