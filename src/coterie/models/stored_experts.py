"""What coterie.json says of the experts of one layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coterie.errors import CheckpointError

__all__ = ["SiteExperts", "field_of"]


@dataclass(frozen=True)
class SiteExperts:
    """The experts of one layer, where config.json cannot say them.

    Attributes:
        experts: E, how many there are.
        routes: R, rows of the gate.
        experts_of: expert of each route, where several routes lead to one; None: route r is expert r.
        inner: inner width of each, where it is not that of config.json.
        kind: ``{"name": ..., ...}`` of experts that are no plain feed-forward experts, as
            `coterie.experts.ExpertKind.as_record` has it.
    """

    experts: int
    routes: int
    experts_of: tuple[int, ...] | None = None
    inner: int | None = None
    kind: Mapping[str, Any] | None = None

    def as_record(self) -> dict[str, Any]:
        """A JSON table."""
        aliases = None if self.experts_of is None else list(self.experts_of)
        return {
            "experts": self.experts, "routes": self.routes, "experts_of": aliases, "inner": self.inner,
            "kind": None if self.kind is None else dict(self.kind),
        }  # fmt: skip

    @classmethod
    def from_record(cls, record: Any, where: str) -> SiteExperts:
        """What `as_record` made, checked.

        Raises:
            CheckpointError: a field is missing or of another kind, or contradicts another.
        """
        if not isinstance(record, dict):
            raise CheckpointError(f"{where}: a layer's experts are {record!r}, not a table. Copy the file again.")
        experts, routes = field_of(record, "experts", int, where), field_of(record, "routes", int, where)
        aliases, inner, kind = record.get("experts_of"), record.get("inner"), record.get("kind")
        leads = range(routes) if aliases is None else aliases
        if (
            experts < 1
            or not isinstance(leads, list | range)
            or not all(isinstance(expert, int) and 0 <= expert < experts for expert in leads)
            or len(leads) != routes
            or set(leads) != set(range(experts))
            or not isinstance(inner, int | None)
            or not isinstance(kind, dict | None)
        ):
            raise CheckpointError(
                f"{where} contradicts itself: {routes} routes to {experts} experts by the map {aliases}. Copy the file "
                "again, or save the model again."
            )
        return cls(experts, routes, None if aliases is None else tuple(aliases), inner, kind)


def field_of(record: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    """A field of a JSON table.

    Raises:
        CheckpointError: it is missing or of another kind.
    """
    value = record.get(name)
    if not isinstance(value, kind):
        found = "is missing" if value is None else f"is {value!r}"
        raise CheckpointError(f"{where}: the field {name!r} {found}. Copy the file again, or save the model again.")
    return value
