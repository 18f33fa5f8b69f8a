"""The offload benchmark, one concern per file; `benchmarks/offload.py` is its command line.

scales        the shape of the model and of the run        checkpoint, tensorfile   the model on disk
routes        which experts every token goes to            cold, memory_limit       equal footing
counters      what the kernel counted                      arms, host, ...          the contestants
worker        one arm, once, in a process of its own       schedule                 all of them, interleaved
answers       whether they computed the same               summary, bounds          arithmetic on raw numbers
verdict       required lines, pass or fail                 report                   markdown and JSON
"""

__all__: list[str] = []
