"""What quantizing would do, before it does."""

from octavo.core.plan.build import plan
from octavo.core.plan.model_state import check_device, check_values
from octavo.core.plan.plan import Plan, TensorPlan

__all__ = ["Plan", "TensorPlan", "check_device", "check_values", "plan"]
