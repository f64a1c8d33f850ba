from pathlib import Path
from typing import Any

import pytest
from running import greedy_text, running

from cai.errors import EngineError

QUESTION = "Why is the sky blue? Answer in one sentence."


def lora(model: str, folder: Path) -> Any:
    """Save a LoRA adapter with random weights, B included, and return transformers' model with it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    found = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    for name, weight in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    found.save_pretrained(folder)
    return found


def test_replies_come_from_the_adapter(model: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    adapted = lora(model, tmp_path)
    with running(adapter=tmp_path) as vllm:
        found = vllm.ask(QUESTION, max_tokens=16)
        assert vllm.engine.info.details["adapter"] == str(tmp_path)
    assert found.text == greedy_text(adapted, tokenizer, QUESTION, 16)
    assert found.text != greedy_text(base, tokenizer, QUESTION, 16)


def test_a_context_longer_than_the_models_is_refused_before_anything_is_loaded() -> None:
    import asyncio

    from cai.config import EngineConfig
    from cai.engines.vllm import open_vllm

    with pytest.raises(EngineError, match=r"vLLM cannot run .*max_model_len"):
        asyncio.run(open_vllm(EngineConfig(engine="vllm", max_model_len=1_000_000)))
