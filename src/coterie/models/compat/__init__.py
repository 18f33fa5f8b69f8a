"""Every touch point with transformers' internals: one small function each, one contract test each.

    calls       what a model takes and what its config says, where families differ
    gating      what a family computes between its experts' matrices
    interface   what a transformers experts module says about itself; sentinels; recorder hooks
    own_layouts the families whose experts are not behind transformers' interface, and (own_calls) how they are called
    names       tensor names on disk -> names in memory, expert by expert
    skeleton    a model without memory, and the class of a model without experts
    auto        classes of routed models, and that transformers' Auto classes know them
    loading     dense weights through transformers' own loader, experts never read

When transformers changes, tests/models/test_models_compat.py says which of these to mend.
"""

from coterie.models.compat.auto import (
    BASE,
    MODEL_TYPE,
    family_config_class,
    no_base,
    register_auto,
    routed_config_class,
    routed_model_class,
)
from coterie.models.compat.calls import called_body, first_inputs, most, next_inputs, takes, tensors_in, text_inputs
from coterie.models.compat.interface import (
    accept_sentinels,
    ffn_shape,
    install_recorders,
    is_experts,
    recorders_installed,
)
from coterie.models.compat.loading import load_dense, quiet
from coterie.models.compat.names import DiskNames, Place
from coterie.models.compat.own_calls import Reader, Sent, by_table
from coterie.models.compat.own_layouts import OWN_LAYOUTS, OwnLayout, own_layout
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
    "BASE",
    "MODEL_TYPE",
    "OWN_LAYOUTS",
    "DiskNames",
    "OwnLayout",
    "Place",
    "Reader",
    "Sent",
    "accept_sentinels",
    "auto_class",
    "beside_text",
    "by_table",
    "called_body",
    "class_without",
    "family_config_class",
    "ffn_shape",
    "first_inputs",
    "install_recorders",
    "is_experts",
    "load_dense",
    "most",
    "next_inputs",
    "no_base",
    "own_layout",
    "quiet",
    "read_config",
    "recorders_installed",
    "register_auto",
    "resident_bytes",
    "routed_config_class",
    "routed_model_class",
    "skeleton",
    "takes",
    "tensors_in",
    "text_config",
    "text_inputs",
    "tied_names",
]
