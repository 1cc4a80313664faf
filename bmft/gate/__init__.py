"""Decide from an audit, by a policy, whether a model passes: pass, fail or inconclusive."""

from bmft.gate.check import check
from bmft.gate.policy import Policy, load_policy, parse_policy
from bmft.gate.sample_size import plan
from bmft.gate.template import starting_policy
from bmft.gate.verdict import Verdict

__all__ = ["Policy", "Verdict", "check", "load_policy", "parse_policy", "plan", "starting_policy"]
