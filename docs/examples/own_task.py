"""A task of one's own, from a csv to answers: python docs/examples/own_task.py FOLDER

Trains a set for two kinds of mails on the embedded encoder, in a store in FOLDER, and asks it about new ones.
It takes about ten seconds on one core and needs no network.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pandas as pd

from registry import Backbone, Predictor, Registry, TaskData

THINGS = ("parcel", "lamp", "jacket", "phone", "chair", "kettle", "book", "printer", "guitar", "bicycle")
COMPLAINTS = (
    "the {} arrived broken",
    "my {} stopped working after a day",
    "I am very unhappy with the {}",
    "this {} is faulty",
)
QUESTIONS = (
    "when will the {} be in stock",
    "which sizes of the {} do you sell",
    "how much is the {}",
    "where can I see the {}",
)


def main(folder: Path) -> None:
    """Write the csv, train, and print an answer for each new mail."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "mails.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("body", "kind"))
        for kind, forms in (("complaint", COMPLAINTS), ("question", QUESTIONS)):
            rows.writerows((form.format(thing), kind) for form in forms for thing in THINGS)

    backbone = Backbone.load("embedded")
    registry = Registry.create(folder / "store", backbone)
    data = TaskData.from_pandas(pd.read_csv(folder / "mails.csv"), text="body", label="kind", name="mails")
    trained = registry.train("mails", data, epochs=6, batch_size=8, max_length=32)
    print(trained, *trained.remarks, sep="\n")

    new = pd.DataFrame({"body": ["the radio arrived broken", "how much is the radio"]})
    answered = Predictor(backbone, registry).predict_frame("mails", new, text="body")
    for text, label in zip(answered["body"], answered["label"], strict=True):
        print(f"{text}: {label}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("own-task"))
