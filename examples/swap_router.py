"""Swap the router of an OLMoE model: easy tokens now use fewer experts, and it still writes."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from coterie.jobs.locate import locate
from coterie.models import RouterSpec, route, trace

model = AutoModelForCausalLM.from_pretrained(locate("pocket"), dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(locate("pocket"))
route(model, RouterSpec("top_p", {"p": 0.5}))  # in place of the four best of sixteen; the gates' weights stay
ids = tokenizer("The captain looked at", return_tensors="pt").input_ids
with trace(model) as recording:
    print(tokenizer.decode(model.generate(ids, max_new_tokens=40, do_sample=False)[0]))
for site, routing in recording.plan().sites.items():
    print(f"{site}: {routing.num_assignments / routing.num_items:.2f} experts per token")
