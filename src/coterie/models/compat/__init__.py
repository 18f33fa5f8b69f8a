"""Every touch point with transformers' internals: one small function each, one contract test each.

    calls       what a model takes and what its config says, where families differ
    gating      what a family computes between its experts' matrices
    interface   what a transformers experts module says about itself; sentinels; recorder hooks
    names       tensor names on disk -> names in memory, expert by expert
    skeleton    a model without memory, and the class of a model without experts
    loading     dense weights through transformers' own loader, experts never read

When transformers changes, tests/models/test_models_compat.py says which of these to mend.
"""

from coterie.models.compat.calls import most, takes, tensors_in, text_inputs
from coterie.models.compat.interface import (
    accept_sentinels,
    ffn_shape,
    install_recorders,
    is_experts,
    recorders_installed,
)
from coterie.models.compat.loading import load_dense, quiet
from coterie.models.compat.names import DiskNames, Place
from coterie.models.compat.skeleton import (
    auto_class,
    beside_text,
    class_without,
    read_config,
    resident_bytes,
    skeleton,
    text_config,
    tied_names,
)

__all__ = [
    "DiskNames",
    "Place",
    "accept_sentinels",
    "auto_class",
    "beside_text",
    "class_without",
    "ffn_shape",
    "install_recorders",
    "is_experts",
    "load_dense",
    "most",
    "quiet",
    "read_config",
    "recorders_installed",
    "resident_bytes",
    "skeleton",
    "takes",
    "tensors_in",
    "text_config",
    "text_inputs",
    "tied_names",
]
