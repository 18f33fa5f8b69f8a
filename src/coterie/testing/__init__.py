"""The contract batteries, shipped: a new part supplies a row of a table and inherits every check.

They are plain functions that raise AssertionError, so that any test runner can run them.
"""

from coterie.testing.router_case import RouterCase
from coterie.testing.routers import ROUTER_CHECKS

__all__ = ["ROUTER_CHECKS", "RouterCase"]
