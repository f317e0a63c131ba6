"""What one engine step computes: how much prefill, whose, and who gives way. Pure decisions.

Chunked prefill turns one prompt into many small tasks, which compete with each other and with
every decode for the next step. Start with `plan`, which forms one step; it asks `pace` (how
close the tightest decode is to its target), `budget` (how many prompt tokens fit into the time
that leaves), `order` (which prompts get them) and `shares` (for mode `custom`). `victim` says
which sequence gives up its slot and KV blocks for a higher class.

The engine runs these inside vLLM's scheduler, every few milliseconds, so what they cost is part
of their contract: nothing here grows with the number of decodes.
"""
