"""The part of a model's card that says how to load and serve it: code that runs in the model's folder."""

from typing import Any

from cai.data.card_parts import escaped

_REWARD_HEAD = """
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # the folder of this file, or its name on the hub
model = AutoModelForSequenceClassification.from_pretrained(folder)
"""
_REWARD_ADAPTER_HEAD = """
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # the folder of this file, or its name on the hub
base = PeftConfig.from_pretrained(folder).base_model_name_or_path
config = AutoConfig.from_pretrained(folder)  # of one output, with the padding token
model = AutoModelForSequenceClassification.from_pretrained(base, config=config)
model = PeftModel.from_pretrained(model, folder)
"""
_REWARD = """
tokenizer = AutoTokenizer.from_pretrained(folder)
conversation = [
    {"role": "user", "content": "How long do I boil an egg?"},
    {"role": "assistant", "content": "Eight minutes."},
]
inputs = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True)
with torch.no_grad():
    output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
reward = output.logits[0, 0].item() - model.config.reward_offset
print(reward)
"""
_SCORED = """\
This code reads a special token that is spelt out in a text as that token. `cai score --model FOLDER` reads it as text,
and scores whole files and ensembles.
"""
_POLICY_HEAD = """
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the folder of this file, or its name on the hub
model = AutoModelForCausalLM.from_pretrained(folder)
"""
_POLICY_ADAPTER_HEAD = """
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the folder of this file, or its name on the hub
base = PeftConfig.from_pretrained(folder).base_model_name_or_path
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
"""
_POLICY = """
tokenizer = AutoTokenizer.from_pretrained(folder)
conversation = [{"role": "user", "content": "How long do I boil an egg?"}]
inputs = tokenizer.apply_chat_template(
    conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
tokens = model.generate(
    input_ids=inputs["input_ids"],
    attention_mask=inputs["attention_mask"],
    max_new_tokens=256,
    pad_token_id=tokenizer.pad_token_id,
)
reply = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
print(reply)
"""
_SERVED = """
With FOLDER for this folder:

```sh
vllm serve FOLDER
cai critique-revise --model FOLDER
```
"""
_SERVED_ADAPTER = """
With FOLDER for this folder, BASE for the base model, and RANK for `r` in adapter\\_config.json, rounded up to a rank
that vLLM takes (8, 16, 32, 64, 128, 256, 320, 512):

```sh
vllm serve BASE --enable-lora --max-lora-rank RANK --lora-modules trained=FOLDER \\
    --chat-template FOLDER/chat_template.jinja
cai critique-revise --model FOLDER
```
"""


def is_adapter(plan: Any) -> bool:
    """Whether what is saved is a LoRA adapter and not a whole model."""
    return bool(plan.config.use_peft and not plan.config.merge_adapter)


def how_to_use(plan: Any) -> str:
    """How to load the model and, of a policy, how to serve it."""
    adapter = is_adapter(plan)
    parts = [_base(plan)] if adapter else []
    if plan.config.trust_remote_code:
        parts.append("The start brings Python code: give `trust_remote_code=True` to each `from_pretrained`.\n")
    if plan.kind == "reward":
        parts += [_python(_REWARD_ADAPTER_HEAD if adapter else _REWARD_HEAD, _REWARD), _SCORED]
    else:
        parts += [_python(_POLICY_ADAPTER_HEAD if adapter else _POLICY_HEAD, _POLICY)]
        parts += [(_SERVED_ADAPTER if adapter else _SERVED).lstrip()]
    return "\n".join(parts)


def _base(plan: Any) -> str:
    """What the adapter must be put on."""
    start = plan.start
    merged = ""
    if plan.kind in ("reward", "ppo") and start.weights.adapter is not None:
        merged = (
            " with the start's adapter merged into it. That is the folder `start` of the run, which must stay where "
            "adapter\\_config.json says it is"
        )
    return f"This is a LoRA adapter. Its base model is {escaped(start.weights.base)}{merged}.\n"


def _python(head: str, code: str) -> str:
    return f"```python\n{head.lstrip()}{code.lstrip()}```\n"
