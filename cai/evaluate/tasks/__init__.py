"""The tasks of `cai evaluate`, one small module each."""

from collections.abc import Mapping
from typing import Any

from cai.evaluate.records import TaskName
from cai.evaluate.task import Task
from cai.evaluate.tasks.capability import TASK as CAPABILITY
from cai.evaluate.tasks.choices import TASK as CHOICES
from cai.evaluate.tasks.compliance import TASK as COMPLIANCE
from cai.evaluate.tasks.harmlessness import TASK as HARMLESSNESS
from cai.evaluate.tasks.helpfulness import TASK as HELPFULNESS
from cai.evaluate.tasks.honesty import TASK as HONESTY
from cai.evaluate.tasks.over_refusal import TASK as OVER_REFUSAL
from cai.evaluate.tasks.style import TASK as STYLE
from cai.evaluate.tasks.sycophancy import TASK as SYCOPHANCY

TASKS: Mapping[TaskName, Task[Any]] = {
    task.name: task
    for task in (
        HARMLESSNESS,
        HELPFULNESS,
        OVER_REFUSAL,
        HONESTY,
        SYCOPHANCY,
        STYLE,
        COMPLIANCE,
        CHOICES,
        CAPABILITY,
    )
}
"""By name, in the order of reports."""
REPLIES_OF: Mapping[TaskName, TaskName] = {"style": "helpfulness", "compliance": "harmlessness"}
"""The task whose replies one looks at that asks for none of its own."""
