"""A task of one's own, from a csv to answers: python docs/examples/own_task.py FOLDER

Trains a set for two kinds of mails on the embedded encoder, in a store in FOLDER, and asks it about new ones.
It takes about ten seconds on one core and needs no network.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

from registry import Backbone, Predictor, Registry

PROGRAM = Path(sys.executable).with_name("adapter-registry")
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
    mails, store = folder / "mails.csv", folder / "store"
    with mails.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("body", "kind"))
        for kind, forms in (("complaint", COMPLAINTS), ("question", QUESTIONS)):
            rows.writerows((form.format(thing), kind) for form in forms for thing in THINGS)

    options = (
        "--text-col body --label-col kind --epochs 6 --batch-size 8 --max-length 32 --backbone embedded --name mails"
    )
    subprocess.run([PROGRAM, "--store", store, "--offline", "train", "--data", mails, *options.split()], check=True)

    backbone = Backbone.load("embedded")
    predictor = Predictor(backbone, Registry(store, backbone))
    texts = ["the radio arrived broken", "how much is the radio"]
    for text, answer in zip(texts, predictor("mails", texts), strict=True):
        print(f"{text}: {answer.label}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("own-task"))
