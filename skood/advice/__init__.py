"""Which detector to start with, by rules that are on the page "Choosing a detector" too."""

from skood.advice.recommending import Advice, recommend
from skood.advice.rules import RULES, Choice, Rule, Situation, choosing_table

__all__ = ["RULES", "Advice", "Choice", "Rule", "Situation", "choosing_table", "recommend"]
