"""What a client sees of a stream that breaks, behind what people put in front.

`python -m bench.endings` plays each ending byte by byte behind each proxy, asks through it, and
prints what arrived. docs/clients.md has the table.
"""
