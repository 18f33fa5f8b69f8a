"""The hosts: transformers models, opened, found, traced, and given our experts and routers.

The only room that knows transformers' internals, all of them in `compat`. transformers itself is
imported when first needed, so that importing this costs no more than torch.
"""

from coterie.models.attach import Attachment, attach, session_of
from coterie.models.calibrating import calibrate
from coterie.models.channel_statistics import ChannelUse, FFNStatistics
from coterie.models.checkpoint import Checkpoint, ExpertSite, open_checkpoint
from coterie.models.collect import Collection, collect
from coterie.models.convert import experts_from, router_from
from coterie.models.counts import Parameters, count_parameters
from coterie.models.facts import RouterFacts, router_facts
from coterie.models.feed_forwards import ChannelCollection, FFNSite, collect_channels, find_ffns
from coterie.models.find import MoESite, find_sites
from coterie.models.footprint import Footprint, footprint
from coterie.models.identity import identity
from coterie.models.language import load_host
from coterie.models.requests import RouteOptions, routed_as
from coterie.models.resident import resident_experts
from coterie.models.routed import RouterSpec, config_of, route, set_curves
from coterie.models.session import Session, Usage
from coterie.models.statistics import DomainUse, SiteStatistics, Statistics
from coterie.models.trace import Recording, routing_hash, trace

__all__ = [
    "Attachment",
    "ChannelCollection",
    "ChannelUse",
    "Checkpoint",
    "Collection",
    "DomainUse",
    "ExpertSite",
    "FFNSite",
    "FFNStatistics",
    "Footprint",
    "MoESite",
    "Parameters",
    "Recording",
    "RouteOptions",
    "RouterFacts",
    "RouterSpec",
    "Session",
    "SiteStatistics",
    "Statistics",
    "Usage",
    "attach",
    "calibrate",
    "collect",
    "collect_channels",
    "config_of",
    "count_parameters",
    "experts_from",
    "find_ffns",
    "find_sites",
    "footprint",
    "identity",
    "load_host",
    "open_checkpoint",
    "resident_experts",
    "route",
    "routed_as",
    "router_facts",
    "router_from",
    "routing_hash",
    "session_of",
    "set_curves",
    "trace",
]
