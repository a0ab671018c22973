"""What is not installed is named with the extra that brings it."""

from __future__ import annotations

from pathlib import Path

import pytest

from community.errors import CommunityError
from community.extras import extra, installed


def test_what_is_there_is_given() -> None:
    assert installed("json")
    assert extra("json.decoder", "export").JSONDecoder


def test_a_folder_of_its_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Python looks into the working directory: wandb logs to a folder `wandb` there."""
    (tmp_path / "a_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not installed("a_tracker")
    with pytest.raises(CommunityError, match=r"a_tracker is not .* 'modelcommunity\[wandb\]'"):
        extra("a_tracker.sdk", "wandb")
