"""One study per paper: arms x seeds -> metrics -> claims, each with a verdict.

How a study is written, in a file of its own with a constant ``STUDY``:

1. ``ARMS``: an `Arm` for each way of doing it. ``steps`` is its length, ``options`` is what ``run`` reads, ``after``
   names arms whose result of the same seed it starts from.
2. ``run(bench) -> metrics``: one arm with one seed, in a process of its own with one thread. It reads ``bench.arm``,
   ``bench.seed``, ``bench.corpus.parts["train"]`` (bytes), makes exactly ``bench.steps`` updates with
   ``progress=bench.progress``, shortens everything else that takes time with ``bench.scaled(n)``, may leave files in
   ``bench.place`` and find those of earlier arms in ``bench.earlier[name]``. Metrics are JSON values: numbers, lists,
   mappings. A `CoterieError` makes the run a failed one; the others go on.
3. ``CLAIMS``: a `Claim` for each sentence of the paper, with its thresholds in the text: ``numbers`` picks what
   decides from the runs of one seed (arm -> metrics), ``test`` judges all seeds: `each`, `at_least`, `on_average`,
   `together`. ``gated=False`` is reported only; ``failure="not shown"`` where a failure proves nothing.
4. ``COLUMNS``: the metrics that the table of arms shows.
5. A line in ``catalogue.py``, a page docs/papers/<name>.md with the marks of ``page.py``, a smoke test, and a test of
   every claim on metrics made by hand.

``plain_text`` is the default text; a study of something else gives its own ``gather``. `run_study` does the rest:
processes, what is kept of an interrupted start, the report, the verdicts.
"""

from coterie.studies.catalogue import STUDIES, open_study
from coterie.studies.claims import Claim, Finding, at_least, each, judge, on_average, together
from coterie.studies.corpus import Corpus, plain_text
from coterie.studies.record import read_record
from coterie.studies.runner import State, run_study
from coterie.studies.study import Arm, Bench, Column, Study
from coterie.studies.tables import sheet_of

__all__ = [
    "STUDIES",
    "Arm",
    "Bench",
    "Claim",
    "Column",
    "Corpus",
    "Finding",
    "State",
    "Study",
    "at_least",
    "each",
    "judge",
    "on_average",
    "open_study",
    "plain_text",
    "read_record",
    "run_study",
    "sheet_of",
    "together",
]
