"""What quantizing would do, before it does."""

from octavo.core.plan.build import check_device, plan
from octavo.core.plan.plan import Plan, TensorPlan

__all__ = ["Plan", "TensorPlan", "check_device", "plan"]
