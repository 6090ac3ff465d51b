"""The commands that take sets in from other libraries' folders, one or many, and write such folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command_line import call, succeed
from tests.support.made_folders import BOTTLENECK, PEFT_LORA, write_adapterhub, write_peft


@pytest.fixture
def store(tmp_path: Path, tiny_folder: Path) -> Path:
    """An empty store of the tiny backbone."""
    path = tmp_path / "store"
    succeed("--store", path, "init", "--backbone", tiny_folder)
    return path


def test_a_folder_comes_in_and_show_says_whose_word_it_fits_on(store: Path, tmp_path: Path, tiny_folder: Path) -> None:
    """One folder is found to be whose it is, stored, answers, and show tells that its fit is claimed."""
    folder = write_adapterhub(tmp_path / "films", BOTTLENECK, tiny_folder.name)
    done = succeed("--store", store, "import", folder)
    assert f"{folder} -> task:1\n" == done.out
    assert "claimed, not proved" in done.err
    shown = succeed("--store", store, "show", "task").out
    assert f"its files name the backbone '{tiny_folder.name}'" in shown
    assert {"bad", "good"} == set(
        succeed("--store", store, "predict", "task", "good", "--json").rows[0]["probabilities"]
    )
    out = tmp_path / "out"
    assert "task:1 -> " in succeed("--store", store, "export", "task", out, "--format", "adapterhub").out
    assert "again:1" in succeed("--store", store, "import", out, "--name", "again").out
    refused = call("--store", store, "export", "task", tmp_path / "no", "--format", "peft")
    assert 5 == refused.code
    assert "formats that can hold it: adapterhub, archive" in refused.message


def test_what_is_missing_is_asked_for_by_its_option(store: Path, tmp_path: Path) -> None:
    """Another backbone's name, and labels that do not fit, are refused in a line with the option that decides."""
    folder = write_peft(tmp_path / "mails", PEFT_LORA, "somebody/bert")
    refused = call("--store", store, "import", folder)
    assert 5 == refused.code
    assert "--backbone-unproven" in refused.message
    done = succeed("--store", store, "import", folder, "--backbone-unproven", "--labels", "spam, ham", "--json").rows[0]
    assert ("mails:1", "claimed") == (done["reference"], done["imported"]["fit"])
    assert ["spam", "ham"] == succeed("--store", store, "show", "mails", "--json").rows[0]["head"]["label_names"]
    other = call("--store", store, "import", folder, "--format", "adapterhub")
    assert "--format: expected adapterhub, found what looks like peft" in other.message


def test_many_folders_come_in_and_refused_ones_are_told(store: Path, tmp_path: Path, tiny_folder: Path) -> None:
    """A folder of fifty goes in folder by folder; what was refused says why in its line, and the command fails."""
    many = tmp_path / "many"
    for number in range(50):
        if number % 2:
            write_peft(many / f"peft-{number}", PEFT_LORA, tiny_folder.name, seed=number)
        else:
            write_adapterhub(many / f"hub-{number}", BOTTLENECK, tiny_folder.name, seed=number)
    for number, switch in ((0, "use_gating"), (2, "phm_layer")):
        path = many / f"hub-{number}" / "adapter_config.json"
        plain = json.loads(path.read_text())
        plain["config"][switch] = True
        path.write_text(json.dumps(plain))
    (many / "peft-1" / "adapter_model.safetensors").write_bytes(b"damaged")
    (many / "notes").mkdir()
    done = call("--store", store, "import", many, "--json")
    assert 1 == done.code
    assert "3 of 50 sets in" in done.message
    rows = {Path(row["path"]).name: row for row in done.rows}
    assert "use_gating: expected false" in rows["hub-0"]["error"]
    assert "phm_layer: expected false" in rows["hub-2"]["error"]
    assert "adapter_model.safetensors" in rows["peft-1"]["error"]
    assert 47 == len(succeed("--store", store, "list", "--json").rows)
    assert "hub-4:1" == rows["hub-4"]["reference"]
    plain = call("--store", store, "import", many)
    assert 50 == len(plain.out.splitlines())
    assert f"{many / 'hub-0'} -> refused: cannot import" in plain.out
    named = call("--store", store, "import", many, "--name", "x")
    assert "none for a folder of several sets" in named.message
