"""Tasks that join the rooms below: load a model under a budget, verify it, find what a name means."""

from coterie.jobs.budget import Budget
from coterie.jobs.load import Residence, load
from coterie.jobs.locate import locate
from coterie.jobs.verify import Report, verify

__all__ = ["Budget", "Report", "Residence", "load", "locate", "verify"]
