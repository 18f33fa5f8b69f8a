"""Generate text within a memory budget: python examples/load_under_budget.py [MODEL [MEMORY]]"""

import sys

from transformers import AutoTokenizer

import coterie

name, memory = [*sys.argv[1:], *["pocket", "12MiB"][len(sys.argv) - 1 :]]
model = coterie.load(name, memory=memory, context=128)
tokenizer = AutoTokenizer.from_pretrained(model.coterie.checkpoint.path)
ids = tokenizer("The import statement", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=40, do_sample=False)[0]))
print(model.coterie.describe())
