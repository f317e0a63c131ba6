"""The resource types users write, and the names every part must agree on."""
