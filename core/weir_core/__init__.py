"""The pure heart of Weir: resource types, wire types and decisions, without I/O or a clock."""
