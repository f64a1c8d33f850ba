"""TRL's trainers, with soft labels: what they change is the loss, the order of the rows, and nothing else.

Rows come encoded (`encoding`), so that TRL's own preparation is passed over.
"""

from typing import Any

import torch
from trl import DPOTrainer, RewardTrainer, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference as PromptedCollator
from trl.trainer.reward_trainer import DataCollatorForPreference

from cai.train.batches import LABEL_COLUMNS, BatchOrder, LabelledCollator
from cai.train.losses import dpo_log_odds, soft_cross_entropy, weighted_mean

LENGTH = "length"
"""Column with the number of tokens that a row takes in a batch."""


class _Ordered:
    """What the three trainers share."""

    args: Any
    train_dataset: Any
    group_by_length = True

    def _get_train_sampler(self, train_dataset: Any = None) -> BatchOrder:
        del train_dataset  # has lost the column of lengths, which no model reads
        rows, args = self.train_dataset, self.args
        return BatchOrder(
            len(rows),
            args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            args.seed,
            rows[LENGTH] if self.group_by_length and LENGTH in rows.column_names else None,
        )

    def create_model_card(self, *_: object, **__: object) -> None:
        """TRL writes a card into each checkpoint; the run writes its own at the end."""


class SoftRewardTrainer(_Ordered, RewardTrainer):  # type: ignore[misc]
    """A reward model from pairs with soft labels."""

    def __init__(self, *, group_by_length: bool, pad_token_id: int, **arguments: Any) -> None:
        self.group_by_length = group_by_length
        super().__init__(data_collator=LabelledCollator(DataCollatorForPreference(pad_token_id)), **arguments)

    def _prepare_dataset(self, dataset: Any, *_: object) -> Any:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["chosen_ids", "rejected_ids", *LABEL_COLUMNS]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Bradley–Terry loss on soft labels, with TRL's metrics; see `losses`."""
        del num_items_in_batch  # a mean over pairs: the trainer divides by the accumulation steps
        p_chosen, weights = inputs.pop("p_chosen"), inputs.pop("weight")
        outputs = model(**inputs, use_cache=False)
        chosen, rejected = torch.chunk(outputs.logits.squeeze(-1).float(), chunks=2)
        margin = chosen - rejected
        loss = weighted_mean(soft_cross_entropy(margin, p_chosen), weights)
        if self.args.center_rewards_coefficient:
            loss = loss + self.args.center_rewards_coefficient * weighted_mean((chosen + rejected) ** 2, weights)
        self._note(inputs, chosen.detach(), rejected.detach(), p_chosen)
        return (loss, outputs) if return_outputs else loss

    def _note(self, inputs: dict[str, Any], chosen: Any, rejected: Any, p_chosen: Any) -> None:
        mode = "train" if self.model.training else "eval"
        metrics = self._metrics[mode]
        if mode == "train":
            self._total_train_tokens += int(self.accelerator.gather(inputs["attention_mask"].sum()).sum())
        metrics["num_tokens"] = [self._total_train_tokens]
        margin = chosen - rejected
        # Label ties say nothing about accuracy; reward ties count as half.
        right = 0.5 + 0.5 * torch.sign(margin * (p_chosen - 0.5))
        decided = (p_chosen != 0.5).float()
        right, decided, margin = self.accelerator.gather(torch.stack([right * decided, decided, margin], dim=1)).T
        if decided.sum() > 0:
            metrics["accuracy"].append(float(right.sum() / decided.sum()))
        metrics["margin"].append(float(margin.mean()))
        metrics["mean_reward"].append(float(self.accelerator.gather(torch.cat([chosen, rejected])).mean()))


class SoftDpoTrainer(_Ordered, DPOTrainer):  # type: ignore[misc]
    """DPO on pairs with soft labels; with another `loss_type`, TRL's own loss."""

    def __init__(self, *, group_by_length: bool, pad_token_id: int, soft: bool, **arguments: Any) -> None:
        self.group_by_length = group_by_length
        self._soft = soft
        collator: Any = PromptedCollator(pad_token_id=pad_token_id, max_length=None)
        super().__init__(data_collator=LabelledCollator(collator) if soft else collator, **arguments)

    def _prepare_dataset(self, dataset: Any, *_: object) -> Any:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        labels = LABEL_COLUMNS if self._soft else ()
        reference = ("ref_chosen_logps", "ref_rejected_logps")
        self._signature_columns = ["prompt_ids", "chosen_ids", "rejected_ids", *reference, *labels]

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Log-probabilities under the reference; the labels are no arguments of the model."""
        return super().compute_ref_log_probs(model, _without_labels(inputs))

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        if not self._soft:
            return super()._compute_loss(model, inputs, return_outputs)
        inputs = dict(inputs)
        p_chosen, weights = inputs.pop("p_chosen"), inputs.pop("weight")
        reference = inputs.pop("ref_chosen_logps"), inputs.pop("ref_rejected_logps")
        mask = inputs.pop("completion_mask")
        labels = inputs["input_ids"].masked_fill(mask == 0, -100)
        outputs = model(**inputs, use_cache=False, labels=labels, fused_lm_head=True)
        chosen, rejected = outputs.log_probs.sum(dim=1).chunk(2)
        log_odds = dpo_log_odds(chosen, rejected, *reference, self.beta)
        loss = weighted_mean(soft_cross_entropy(log_odds, p_chosen), weights)
        self._note(inputs, (chosen.detach(), rejected.detach()), reference, p_chosen)
        return (loss, outputs) if return_outputs else loss

    def _note(self, inputs: dict[str, Any], logps: tuple[Any, Any], reference: tuple[Any, Any], p_chosen: Any) -> None:
        mode = "train" if self.model.training else "eval"
        metrics = self._metrics[mode]
        gather = self.accelerator.gather
        if mode == "train":
            self._total_train_tokens += int(gather(inputs["attention_mask"].sum()).sum())
        metrics["num_tokens"] = [self._total_train_tokens]
        rewards = [self.beta * (policy - ref) for policy, ref in zip(logps, reference, strict=True)]
        margin = rewards[0] - rewards[1]
        right = 0.5 + 0.5 * torch.sign(margin * (p_chosen - 0.5))
        decided = (p_chosen != 0.5).float()
        columns = gather(torch.stack([*rewards, margin, right * decided, decided, *logps], dim=1)).T
        names = ("rewards/chosen", "rewards/rejected", "rewards/margins")
        for name, column in zip(names, columns[:3], strict=True):
            metrics[name].append(float(column.mean()))
        if columns[4].sum() > 0:
            metrics["rewards/accuracies"].append(float(columns[3].sum() / columns[4].sum()))
        metrics["logps/chosen"].append(float(columns[5].mean()))
        metrics["logps/rejected"].append(float(columns[6].mean()))


class PlainSftTrainer(_Ordered, SFTTrainer):  # type: ignore[misc]
    """TRL's trainer on rows that are encoded, and packed where that is asked for."""

    def __init__(self, *, group_by_length: bool, **arguments: Any) -> None:
        self.group_by_length = group_by_length
        super().__init__(**arguments)


def _without_labels(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in LABEL_COLUMNS}
