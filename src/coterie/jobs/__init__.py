"""Tasks that join the rooms below: load a model under a budget, plan it, verify it, find what a name means."""

from coterie.jobs.attacking.attack import attack
from coterie.jobs.attacking.report import AttackReport
from coterie.jobs.attacking.threat import Threat
from coterie.jobs.checking.doctor import doctor
from coterie.jobs.checking.findings import Diagnosis
from coterie.jobs.finishing.export import export
from coterie.jobs.finishing.recover import Recovered, recover
from coterie.jobs.growing.add_expert import add_expert
from coterie.jobs.growing.split import Split, export_expert, split
from coterie.jobs.growing.upcycle import Upcycled, upcycle
from coterie.jobs.growing.upcycle_plan import ExpertSource, UpcyclePlan, copies_of, read_plan
from coterie.jobs.inspecting.inspect import inspect
from coterie.jobs.inspecting.inspection import Inspection
from coterie.jobs.inspecting.vision import VisionInspection
from coterie.jobs.locate import locate
from coterie.jobs.running.budget import Budget
from coterie.jobs.running.load import load
from coterie.jobs.running.plan import plan
from coterie.jobs.running.planned import Plan
from coterie.jobs.running.residence import Residence
from coterie.jobs.running.verify import Report, verify
from coterie.jobs.shrinking.average import Averaged, average_models
from coterie.jobs.shrinking.compress import Compressed, compress
from coterie.jobs.shrinking.merge import Merged, merge
from coterie.jobs.shrinking.prune import Pruned, prune
from coterie.jobs.shrinking.quantize import Quantised, quantize
from coterie.jobs.tracing.record import Record, record
from coterie.jobs.tracing.statistics import Calibration, collect_statistics
from coterie.jobs.tracing.usage import Usage, usage

__all__ = [
    "AttackReport",
    "Averaged",
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
    "Threat",
    "UpcyclePlan",
    "Upcycled",
    "Usage",
    "VisionInspection",
    "add_expert",
    "attack",
    "average_models",
    "collect_statistics",
    "compress",
    "copies_of",
    "doctor",
    "export",
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
