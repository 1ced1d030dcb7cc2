"""The settings file: absent, wrong in every way, right."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmd.errors import SettingsError
from kvmd.settings import Settings
from kvmd.sources.settings_file import load_settings


def load(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "kvmd.yaml"
    file.write_text(text)
    return load_settings(str(file), explicit=True)


def fault(tmp_path: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    assert caught.value.hint
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_an_absent_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_settings(str(tmp_path / "none.yaml"), explicit=False) == Settings()
    assert load(tmp_path, "# nothing\n") == Settings()
    assert load(tmp_path, "") == Settings()


def test_an_explicit_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist") as caught:
        load_settings(str(tmp_path / "none.yaml"), explicit=True)
    assert "--config" in caught.value.hint
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(str(tmp_path), explicit=False)


def test_values(tmp_path: Path) -> None:
    text = "owner: lab\nsource: {path: /srv/specs, settle: 500ms, maxFiles: 5}\nhttp: {listen: null}\n"
    settings = load(tmp_path, f"{text}prune: {{grace: 1m}}\n")
    assert settings.owner == "lab"
    assert (settings.source.path, settings.source.settle, settings.source.max_files) == ("/srv/specs", 0.5, 5)
    assert settings.http.listen is None
    assert settings.prune.grace == 60


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ownr: x\n", "kvmd.yaml:1:1: error[unknown-field] the document has no field 'ownr'; did you mean 'owner'?"),
        ("source:\n  settel: 1\n", "kvmd.yaml:2:3: error[unknown-field] source has no field 'settel'; did you mean"),
        ("source:\n  settle: soon\n", "kvmd.yaml:2:11: error[invalid-value] source.settle"),
        ("prune: {maxPercent: 200}\n", "kvmd.yaml:1:21: error[invalid-value] prune.maxPercent must be less than"),
        ("log: {level: warn}\n", "did you mean 'warning'?"),
        ("owner: a\nowner: b\n", "kvmd.yaml:2:1: error[duplicate-key]"),
        ("a: [\n", "error[syntax]"),
        ("- a\n", "must be a mapping"),
        ("owner: a\n---\nowner: b\n", "the settings are one document"),
        (
            "libvirt:\n  modifyDeadline: 5\n",
            "kvmd.yaml:2:19: error[invalid-value] libvirt.modifyDeadline (5s) must be",
        ),
        (
            "source: {settle: 10s}\n",
            "kvmd.yaml:1:9: error[invalid-value] source.rescan (20s) must be at least 3 times",
        ),
    ],
)
def test_faults_have_places(tmp_path: Path, text: str, words: str) -> None:
    assert words in fault(tmp_path, text)


def test_all_faults_at_once(tmp_path: Path) -> None:
    text = fault(tmp_path, "ownr: x\nsource: {settel: 1}\nlog: 5\n")
    assert [line.split(": ")[0] for line in text.splitlines()] == ["kvmd.yaml:1:1", "kvmd.yaml:2:10", "kvmd.yaml:3:6"]
