"""A stub of a vLLM server with an adapted policy; it answers as vLLM 0.32 was seen to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from servers import Answer, ChatServer, Request, fault

STOP = 1


def completion(tokens: list[int] | None, finish: str | None = "length", **choice: Any) -> Answer:
    return Answer(body=json.dumps({"choices": [{"token_ids": tokens, "finish_reason": finish, **choice}]}))


def written(prompt: list[int]) -> list[int]:
    """What the stub answers to a prompt: a response that is told from all others, and ends."""
    return [prompt[1], prompt[1] + 1, STOP]


class VllmStub(ChatServer):
    """Completions that `plan` has no answer for follow from the prompt."""

    def __init__(self, actor: Any) -> None:
        super().__init__()
        self.actor = actor
        self.context: int | None = 64
        self.loaded: dict[str, str] = {}
        self.weights: list[dict[str, torch.Tensor]] = []
        """Of each adapter as it was when it was loaded."""
        self.loads: list[Answer] = []
        self.unloads: list[Answer] = []
        self.lora: list[tuple[str, str]] = []
        """Loads and unloads in their order, by name."""
        self.off = 0.0
        """By which the log-probabilities differ from the policy's."""
        self.compared: list[Any] = []
        self.continuations: list[Answer] = []
        self.on_completion: Callable[[], object] = lambda: None
        """Called before a completion is answered."""

    def answer_to(self, request: Request) -> Answer:
        match request.path:
            case "/v1/models":
                self.listings.append(request)
                return self._models()
            case "/v1/load_lora_adapter":
                return self._load(request.body)
            case "/v1/unload_lora_adapter":
                return self._unload(request.body["lora_name"])
        assert request.path == "/v1/completions"
        if "logprobs" in request.body:
            self.compared.append(request.body)
            return self.continuations.pop(0) if self.continuations else self._continuation(request.body)
        self.requests.append(request)
        self.on_completion()
        return self.plan.popleft() if self.plan else completion(written(request.body["prompt"]), "stop")

    def _models(self) -> Answer:
        base = {"id": "base", "owned_by": "vllm", "root": "/x", "parent": None, "max_model_len": self.context}
        adapters = [{"id": name, "root": root, "parent": "base"} for name, root in self.loaded.items()]
        return Answer(body=json.dumps({"data": [base, *adapters]}))

    def _load(self, body: Any) -> Answer:
        name, path = body["lora_name"], body["lora_path"]
        self.lora.append(("load", name))
        if self.loads:
            return self.loads.pop(0)
        if name in self.loaded:
            return fault(400, f"The lora adapter '{name}' has already been loaded.")
        self.weights.append(load_file(Path(path) / "adapter_model.safetensors"))
        self.loaded[name] = path
        return Answer(body="Success", content_type="text/plain")

    def _unload(self, name: str) -> Answer:
        self.lora.append(("unload", name))
        if self.unloads:
            return self.unloads.pop(0)
        if self.loaded.pop(name, None) is None:
            return fault(404, f"The lora adapter '{name}' cannot be found.")
        return Answer(body="Success", content_type="text/plain")

    def _continuation(self, body: Any) -> Answer:
        tokens = [40 + place for place in range(body["max_tokens"])]
        self.actor.policy.set_adapter("default")
        with torch.no_grad():
            logits = self.actor.policy(torch.tensor([body["prompt"] + tokens])).logits[0, len(body["prompt"]) - 1 : -1]
        logprobs = logits.log_softmax(-1)[range(len(tokens)), tokens] + self.off
        return completion(tokens, logprobs={"token_logprobs": logprobs.tolist()})
