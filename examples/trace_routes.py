"""Record which experts a model used, and print each layer's load."""

import torch

import coterie
from coterie.models import trace

model = coterie.load("pocket", context=64)
with trace(model) as recording:
    model.generate(torch.arange(2, 18)[None], max_new_tokens=24, do_sample=False)
plan = recording.plan()
plan.save("routes.safetensors")
for site, routing in plan.sites.items():
    print(site, routing.items_per_expert().tolist())
