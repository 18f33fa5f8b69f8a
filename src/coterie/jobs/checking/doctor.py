"""What may keep a model from running here, or slow it down, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from coterie.errors import CheckpointError
from coterie.jobs.checking.checkup_checkpoint import CheckpointCheckup
from coterie.jobs.checking.checkup_machine import machine_checks
from coterie.jobs.checking.checkup_vision import VisionCheckup
from coterie.jobs.checking.findings import Diagnosis, Finding, carefully
from coterie.jobs.locate import locate
from coterie.models.shards import read_config_json
from coterie.models.vision import is_vision

Say = Callable[[str], None]


def doctor(
    model: str | Path | None = None,
    *,
    checksum: bool = False,
    values: bool = False,
    revision: str | None = None,
    say: Say = lambda text: None,
) -> Diagnosis:
    """Look at the machine, and at a checkpoint if one is named. Changes nothing, and never raises for what it finds.

    Blocks for seconds; ``checksum`` and ``values`` read every byte of the checkpoint, one piece at a time.

    Args:
        model: a checkpoint directory, a hub name or "pocket".
        checksum: compare SHA-256 with what the hub says, where it is known.
        values: look for NaN and infinity.
        revision: branch, tag or commit of a hub name.
        say: told what is being done.
    """
    findings: list[Finding] = []
    for name, check in machine_checks().items():
        say(f"Checking {name}")
        findings += carefully(name, check)
    if model is not None:
        findings += _checkpoint(model, checksum, values, revision, say)
    return Diagnosis(tuple(findings))


def _checkpoint(
    model: str | Path, checksum: bool, values: bool, revision: str | None, say: Say
) -> list[Finding]:  # fmt: skip
    found: list[Path] = []

    def where() -> list[Finding]:
        found.append(Path(locate(model, revision)))
        return []

    findings = carefully("model", where)
    for path in found:
        checkup = VisionCheckup(path, say) if _is_network(path) else CheckpointCheckup(path, say)
        for name, check in checkup.checks(checksum=checksum, values=values).items():
            say(f"Checking {name}")
            told = {finding.text for finding in findings}
            # a config that cannot be read is the config's problem and the tensors': it is told once
            findings += [finding for finding in carefully(name, check) if finding.text not in told]
    return findings


def _is_network(path: Path) -> bool:
    """A config that cannot be read is told by the checks of language models."""
    with suppress(CheckpointError):
        return is_vision(read_config_json(path))
    return False
