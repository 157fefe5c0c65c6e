"""Distillation: a quantized student that learns from the model it was made of, or from another one."""

from octavo.core.distillation.config import DistillConfig, HiddenLoss
from octavo.core.distillation.distill import distill, export_student
from octavo.core.distillation.distillation import Distillation
from octavo.core.distillation.teacher_logits import TeacherLogits

__all__ = ["DistillConfig", "Distillation", "HiddenLoss", "TeacherLogits", "distill", "export_student"]
