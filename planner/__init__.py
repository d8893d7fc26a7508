"""Facts in, plan out: no network, no clock, no torch."""

from planner.make_plan import make_plan
from planner.problem import Problem
from planner.result import Result
from planner.search_params import SearchParams
from planner.stop import StopRule, never

__all__ = ["Problem", "Result", "SearchParams", "StopRule", "make_plan", "never"]
