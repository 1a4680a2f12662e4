"""Data sets for evaluation as people have them on disk, recognised and checked."""

from eval.layouts.evalset import EvalSet, Group
from eval.layouts.expected import Expected, expected
from eval.layouts.recognise import open_eval_set

__all__ = ["open_eval_set", "EvalSet", "Group", "Expected", "expected"]
