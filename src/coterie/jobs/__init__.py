"""Tasks that join the rooms below: load a model under a budget, plan it, verify it, find what a name means."""

from coterie.jobs.budget import Budget
from coterie.jobs.doctor import doctor
from coterie.jobs.findings import Diagnosis
from coterie.jobs.inspect import inspect
from coterie.jobs.inspection import Inspection
from coterie.jobs.load import Residence, load
from coterie.jobs.locate import locate
from coterie.jobs.plan import Plan, plan
from coterie.jobs.record import Record, record
from coterie.jobs.statistics import Calibration, collect_statistics
from coterie.jobs.usage import Usage, usage
from coterie.jobs.verify import Report, verify

__all__ = [
    "Budget",
    "Calibration",
    "Diagnosis",
    "Inspection",
    "Plan",
    "Record",
    "Report",
    "Residence",
    "Usage",
    "collect_statistics",
    "doctor",
    "inspect",
    "load",
    "locate",
    "plan",
    "record",
    "usage",
    "verify",
]
