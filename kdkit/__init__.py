"""kdkit: knowledge distillation from a teacher network into a student."""

__version__ = "0.1.0"
