"""The contract batteries, shipped: a new part supplies a row of a table and inherits every check.

They are plain functions that raise AssertionError, so that any test runner can run them. Tiny
checkpoints to run whole models on are in `coterie.testing.checkpoints`.
"""

from coterie.testing.experts import EXPERTS_CHECKS, ExpertsCase
from coterie.testing.router_case import RouterCase
from coterie.testing.routers import ROUTER_CHECKS
from coterie.testing.stores import POLICY_CHECKS, TIER_CHECKS

__all__ = ["EXPERTS_CHECKS", "POLICY_CHECKS", "ROUTER_CHECKS", "TIER_CHECKS", "ExpertsCase", "RouterCase"]
