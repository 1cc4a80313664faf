"""Decide from an audit, by a policy, whether a model passes: pass, fail or inconclusive."""

from bmft.gate.checking import check as check
from bmft.gate.policy import Policy as Policy, load_policy as load_policy, parse_policy as parse_policy
from bmft.gate.sample_size import plan as plan
from bmft.gate.small_sets import DebiasPlan as DebiasPlan, plan_debias as plan_debias
from bmft.gate.template import starting_policy as starting_policy
from bmft.gate.verdict import Verdict as Verdict
