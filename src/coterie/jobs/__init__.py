"""Tasks that join the rooms below: load a model under a budget, plan it, verify it, find what a name means."""

from coterie.jobs.add_expert import add_expert
from coterie.jobs.budget import Budget
from coterie.jobs.compress import Compressed, compress
from coterie.jobs.doctor import doctor
from coterie.jobs.findings import Diagnosis
from coterie.jobs.inspect import inspect
from coterie.jobs.inspection import Inspection
from coterie.jobs.load import Residence, load
from coterie.jobs.locate import locate
from coterie.jobs.merge import Merged, merge
from coterie.jobs.plan import Plan, plan
from coterie.jobs.prune import Pruned, prune
from coterie.jobs.quantize import Quantised, quantize
from coterie.jobs.record import Record, record
from coterie.jobs.recover import Recovered, recover
from coterie.jobs.split import Split, export_expert, split
from coterie.jobs.statistics import Calibration, collect_statistics
from coterie.jobs.upcycle import Upcycled, upcycle
from coterie.jobs.upcycle_plan import ExpertSource, UpcyclePlan, copies_of, read_plan
from coterie.jobs.usage import Usage, usage
from coterie.jobs.verify import Report, verify

__all__ = [
    "Budget",
    "Calibration",
    "Compressed",
    "Diagnosis",
    "ExpertSource",
    "Inspection",
    "Merged",
    "Plan",
    "Pruned",
    "Quantised",
    "Record",
    "Recovered",
    "Report",
    "Residence",
    "Split",
    "UpcyclePlan",
    "Upcycled",
    "Usage",
    "add_expert",
    "collect_statistics",
    "compress",
    "copies_of",
    "doctor",
    "export_expert",
    "inspect",
    "load",
    "locate",
    "merge",
    "plan",
    "prune",
    "quantize",
    "read_plan",
    "record",
    "recover",
    "split",
    "upcycle",
    "usage",
    "verify",
]
