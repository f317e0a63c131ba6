"""`tiny://`: a small Llama that every machine makes for itself, the same to the byte.

It exists so that Weir runs, is tested and is tried out on real vLLM without a download. Its
weights are written by rule, not learned: they speak a toy grammar (`grammar`), so answers are
English sentences that end by themselves, and random attention on top makes every word depend on
the whole prompt, as in a real model. `model.prepare` writes it; nothing else is needed.
"""
